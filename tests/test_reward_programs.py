"""on_policy_data_gen/rewards/program.py: scores from a function of the user's, whatever it does."""

import json
import sys
from pathlib import Path

from reward_model_annotate import main
from rewards import Options, load_reward_model
from simpo.data.load import get_datasets

GOOD = """
print("printed while imported")
from helper import count


def score(prompt, responses, row):
    print("printed for", prompt)
    return [count(response) * row["weight"] if "skip" not in response else None for response in responses]
"""
BAD = """
import math, os, sys, time


def score(prompt, responses, row):
    behaviour = responses[0]
    if behaviour == "raise":
        raise ValueError("no such answer")
    if behaviour == "hang":
        time.sleep(600)
    if behaviour == "crash":
        os._exit(7)
    if behaviour == "few":
        return [1.0]
    if behaviour == "none":
        return None
    if behaviour == "odd":
        return [math.nan, "high"]
    return [1, True]
"""
PROBLEMS = {
    "raise": "ValueError: no such answer",
    "hang": "more than 0.5 seconds",
    "crash": "ends its process (status 7)",
    "few": "1 scores for 2 responses",
    "none": "returns NoneType",
}


def write_program(folder: Path, text: str) -> str:
    (folder / "scorer.py").write_text(text)
    (folder / "helper.py").write_text("def count(text):\n    return len(text.split())\n")
    return f"{folder}/scorer.py:score"


def run(monkeypatch, folder: Path, rows: list[dict], program: str, *more: str) -> list[dict]:
    (folder / "in.json").write_text(json.dumps(rows))
    argv = ["--generation_file", str(folder / "in.json"), "--output_dir", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["reward_model_annotate.py", *argv, "--reward_model", program, *more])
    main()
    return json.loads((folder / "out" / "all_outputs_rm.json").read_text())


def row(prompt: str, *responses: str, **columns: object) -> dict:
    return {"prompt": prompt, "all_generated_responses": list(responses), **columns}


def test_a_program_scores_with_the_columns_of_the_row(monkeypatch, tmp_path, capfd):
    rows = [row(f"p{i}", "one", "one two", "skip", weight=i + 1, kind="x" if i else 3) for i in range(3)]
    scored = run(monkeypatch, tmp_path, rows, write_program(tmp_path, GOOD))
    assert [r["all_rm_scores"] for r in scored] == [[1.0, 2.0, None], [2.0, 4.0, None], [3.0, 6.0, None]]
    pairs = json.loads((tmp_path / "out" / "all_outputs_bin.json").read_text())
    assert [(pair["chosen"][-1]["content"], pair["weight"], pair["kind"]) for pair in pairs[:2]] == [
        ("one two", 1, 3),
        ("one two", 2, "x"),
    ]
    output = capfd.readouterr()
    assert "printed while imported" in output.err and "printed" not in output.out
    assert "cannot be scored, 3 times: the program gives it no score" in output.err
    assert len(get_datasets({str(tmp_path / "out" / "datasets"): 1.0})["train"]) == 2  # kind has two types


def test_an_edited_program_scores_again(monkeypatch, tmp_path, capsys):
    rows = [row(f"p{i}", "one", "one two", weight=1) for i in range(3)]
    program = write_program(tmp_path, GOOD)
    first = run(monkeypatch, tmp_path, rows, program)
    journal = tmp_path / "out" / "journal" / "scores.0.jsonl"
    before = journal.read_text()
    assert run(monkeypatch, tmp_path, rows, program) == first and journal.read_text() == before
    capsys.readouterr()
    again = run(
        monkeypatch, tmp_path, rows, write_program(tmp_path, GOOD.replace("count(response) *", "-count(response) *"))
    )
    assert "has changed since the last run" in capsys.readouterr().out
    assert [r["all_rm_scores"] for r in again] == [[-1.0, -2.0]] * 3


def test_a_program_that_misbehaves(tmp_path):
    """Whatever it does with one prompt, the others are scored."""
    source = load_reward_model(write_program(tmp_path, BAD), Options(time_limit=0.5))
    source.load(None, None)
    prompts = [*PROBLEMS, "odd", "fine"]
    units = [unit for name in prompts for unit in source.units(name, [name, "other"], {})]
    found = {(unit[0], unit[2]): outcome for batch in source.score_batches(units) for unit, outcome in batch}
    for name, problem in PROBLEMS.items():
        for number in range(2):
            assert found[name, number].value is None and problem in found[name, number].problem, name
    assert "nan, not a finite number" in found["odd", 0].problem and "'high'" in found["odd", 1].problem
    assert [found["fine", number].value for number in range(2)] == [1.0, 1.0]


def test_bad_programs(fails, tmp_path):
    (tmp_path / "in.json").write_text(json.dumps([row("p", "a", "b")]))
    argv = ["--generation_file", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out"), "--reward_model"]
    program = write_program(tmp_path, GOOD)
    assert "no function 'grade'" in fails(main, *argv, program.replace(":score", ":grade"))
    assert "nowhere.py cannot be read" in fails(main, *argv, f"{tmp_path}/nowhere.py:score")
    assert "cannot be read" in fails(main, *argv, write_program(tmp_path, "def score(:"))
    assert not (tmp_path / "out").exists()
    error = fails(main, *argv, write_program(tmp_path, "import no_such_module\ndef score(p, r, row): return []"))
    assert "cannot be imported" in error and "no_such_module" in error
    error = fails(main, *argv, write_program(tmp_path, "import sys\nsys.exit(3)\ndef score(p, r, row): return []"))
    assert "status 3" in error
    error = fails(main, *argv, write_program(tmp_path, "def score(p, r, row): return [row['key']]"))
    assert "no response can be scored" in error and "KeyError: 'key'" in error
    assert "time_limit" in fails(main, *argv, program, "--time_limit", "0")
