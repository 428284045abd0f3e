"""What generate_answers.py and judge.py refuse: one line, status 2, nothing half-written."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import run_script, write_jsonl
from judge_server import KEY, preference_reply, serving
from judge_world import ALPACA, ARENA, MT, answers, judge_files, judged_rows, outputs

import generate_answers
import judge
from tiny_models import tiny_tokenizer


@pytest.fixture
def tokenizer_folder(tmp_path) -> str:
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("benchmark", "rows", "words"),
    [
        ("alpacaeval2", [*ALPACA, ALPACA[1]], "question Ask 1 comes twice"),
        ("arenahard", [*ARENA, ARENA[0]], "question q0 comes twice"),
        ("arenahard", MT, "question_id must not be 1"),
        ("arenahard", ALPACA, "holds AlpacaEval instructions, not Arena-Hard questions"),
        ("mt-bench", ARENA, "holds Arena-Hard questions, not MT-Bench questions"),
        ("mt-bench", [MT[0] | {"turns": ["One?"]}], "have 2 turn(s) of text, found 1"),
        ("mt-bench", [MT[0] | {"turns": ["One?", " "]}], "with an empty one"),
        ("alpacaeval2", [ALPACA[0], {"dataset": "d"}], "line 2: has no field 'instruction'"),
        ("alpacaeval2", [], "holds no rows"),
    ],
)
def test_bad_questions(fails, tmp_path, tokenizer_folder, benchmark, rows, words):
    file, out = write_jsonl(tmp_path / "q.jsonl", rows), tmp_path / "out"
    options = ["--model", tokenizer_folder, "--questions", str(file), "--output_dir", str(out)]
    message = fails(generate_answers.main, "--benchmark", benchmark, *options)
    assert words in message and str(file) in message and not out.exists()


def test_generate_bad_options(fails, tmp_path, tokenizer_folder):
    file = str(write_jsonl(tmp_path / "q.jsonl", ALPACA))
    start = ["--benchmark", "alpacaeval2", "--questions", file, "--output_dir", str(tmp_path / "out")]
    assert "cannot load the tokenizer" in fails(generate_answers.main, *start, "--model", str(tmp_path / "none"))
    model = [*start, "--model", tokenizer_folder]
    assert "unknown key 'temprature'" in fails(generate_answers.main, *model, "--temprature", "1")
    assert "drop --legacy_ae062" in fails(generate_answers.main, *model, "--legacy_ae062")
    assert "9999999 is no token" in fails(generate_answers.main, *model, "--stop_token_ids", "9999999")
    assert "there is no file" in fails(generate_answers.main, *model, "--questions", str(tmp_path / "no.jsonl"))
    assert "name a local file with --questions" in fails(generate_answers.main, *start[:2], *model[-2:])
    assert not (tmp_path / "out").exists()


# --- judge.py


@pytest.fixture
def files(tmp_path):
    """Write the judge's input files; returns the options of a benchmark, with changed rows where given."""
    return lambda benchmark, **changed: judge_files(tmp_path, benchmark, **changed)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize(
    ("benchmark", "changed", "words"),
    [
        ("arenahard", {"answers": answers(ARENA[:2])}, "1 of 3 questions are missing, first q2"),
        ("arenahard", {"answers": answers([*ARENA, ARENA[1]])}, "question q1 comes twice"),
        ("arenahard", {"references": answers(ARENA[1:], "other")}, "1 of 3 questions are missing, first q0"),
        ("arenahard", {"answers": answers(MT)}, "line 1: question_id must not be 1"),
        ("arenahard", {"answers": outputs()}, "holds AlpacaEval model outputs, not Arena-Hard answers"),
        ("arenahard", {"answers": answers(ARENA) + answers(ARENA[:1], "b")}, "comes twice"),
        ("arenahard", {"answers": answers(ARENA[:2]) + answers(ARENA[2:], "b")}, "several models (b, mine)"),
        ("mt-bench", {"answers": answers(ARENA)}, "must have 2 turn(s) of text"),
        ("mt-bench", {"references": answers(MT[:2])}, "1 of 1 questions are missing, first 3"),
        ("alpacaeval2", {"answers": outputs()[:2]}, "1 of 3 questions are missing, first Ask 2"),
        ("alpacaeval2", {"answers": [*outputs(), outputs()[0]]}, "question Ask 0 comes twice"),
        ("alpacaeval2", {"answers": answers(ARENA)}, "holds Arena-Hard or MT-Bench answers, not AlpacaEval"),
    ],
)
def test_bad_answers(fails, files, tmp_path, benchmark, changed, words):
    assert words in fails(judge.main, *files(benchmark, **changed))
    assert not (tmp_path / "out").exists()


def test_bad_prompts(fails, files, tmp_path):
    arena = files("arenahard")
    empty = write_yaml(tmp_path / "empty.yaml", {"name": "x"})
    assert "has no system_prompt" in fails(judge.main, *arena, "--judge_prompts", str(empty))
    strange = write_yaml(tmp_path / "strange.yaml", {"system_prompt": "x", "prompt_template": ["{answer_9}"]})
    assert "has a place {answer_9}" in fails(judge.main, *arena, "--judge_prompts", str(strange))
    assert "judge_prompts: not given" in fails(judge.main, *arena[:-2])
    assert "references: not given" in fails(judge.main, *arena, "--references", "")
    mt = files("mt-bench")
    few = write_jsonl(tmp_path / "few.jsonl", [json.loads(line) for line in Path(mt[-1]).read_text().splitlines()][:2])
    assert "has no prompt single-v1-multi-turn" in fails(judge.main, *mt, "--judge_prompts", str(few))
    assert not (tmp_path / "out").exists()


def write_yaml(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("benchmark", ["alpacaeval2", "arenahard", "mt-bench"])
def test_missing_key(fails, files, monkeypatch, tmp_path, benchmark):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in fails(judge.main, *files(benchmark))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("benchmark", ["alpacaeval2", "arenahard", "mt-bench"])
def test_endpoint_down(fails, files, tmp_path, benchmark):
    if benchmark == "alpacaeval2":
        pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
    with serving(lambda messages: ("", [])) as server:
        url = server.url  # of a server that is gone
    assert f"{url} cannot be reached" in fails(judge.main, *files(benchmark), "--base_url", url)
    assert "must begin with http" in fails(judge.main, *files(benchmark), "--base_url", "not-an-address")
    written = [path for path in (tmp_path / "out").rglob("*.json*") if path.stat().st_size]
    assert all("settings" in path.name for path in written)


@pytest.fixture
def judged(monkeypatch, capsys, tmp_path):
    """Run judge.py, which must end well; returns its errors and the rows it wrote."""

    def run(*options: str) -> tuple[str, list[dict]]:
        monkeypatch.setattr("sys.argv", ["judge.py", *options])
        judge.main()
        return capsys.readouterr().err, judged_rows(tmp_path / "out")

    return run


def test_refused_requests(fails, files, judged, tmp_path):
    """A wrong key or model stops the run and keeps what was judged; a question that is refused is listed and left out,
    and asked again on request only."""
    options = files("arenahard")
    with serving(lambda messages: ("[[A=B]]", []), faults=["", "", "401", "404", "400"]) as server:
        where = [*options, "--base_url", server.url, "--concurrency", "1"]
        assert "refuses the key in OPENAI_API_KEY (status 401)" in fails(judge.main, *where)
        assert "has no judge 'gpt-4-1106-preview'" in fails(judge.main, *where)
        assert not list((tmp_path / "out" / "model_judgment").rglob("mine.jsonl"))
        said, rows = judged(*where)
        assert "no reply: status 400: planted 400" in said and "1 of 6 judgments got no reply" in said
        assert sorted(str(game["score"]) for row in rows for game in row["games"]) == ["A=B"] * 5 + ["None"]
        assert len(server.served) == 5
        assert judged(*where)[1] == rows and len(server.served) == 5
        _, rows = judged(*where, "--retry_failed")
        assert len(server.served) == 6
    assert [[game["score"] for game in row["games"]] for row in rows] == [["A=B", "A=B"]] * 3


def test_other_answers_are_refused(fails, files, tmp_path):
    with serving(lambda messages: ("Rating: [[5]]", [])) as server:
        result = run_script("python", judge.__file__, *files("mt-bench"), "--base_url", server.url)
        assert result.returncode == 0, result.stderr
        changed = answers(MT)
        changed[0]["choices"][0]["turns"][0] = "Something else."
        message = fails(judge.main, *files("mt-bench", answers=changed), "--base_url", server.url)
        assert "holds output of other settings (answers was" in message
        assert len(server.served) == 6


def test_empty_replies_of_alpacaeval(files, judged, tmp_path):
    pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
    options = files("alpacaeval2")
    with serving(lambda messages: preference_reply(0.6) if "Ask 1" not in messages[-1]["content"] else ("", [])) as s:
        said, rows = judged(*options, "--base_url", s.url)
        assert "1 of 3 judgments got no reply" in said
        assert [row["preference"] is None for row in rows] == [False, True, False]
        assert "without log-probabilities" in rows[1]["failed"]
    with serving(lambda messages: preference_reply(0.7)) as server:
        said, rows = judged(*options, "--base_url", server.url, "--retry_failed")
        assert len(server.served) == 1 and len(rows) == 3  # only what was missing
        assert all(1 < row["preference"] < 2 and "failed" not in row for row in rows)
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
