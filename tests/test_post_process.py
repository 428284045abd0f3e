"""on_policy_data_gen/post_process.py: joining by prompt, what is dropped, and what it refuses."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from crashes import contents, stops_of

from post_process import join_by_prompt, main
from simpo.folder import lock_folder


def write_seed(folder: Path, seed: int, answers: dict[str, str], finish_reason: str | None = None) -> None:
    rows = [{"prompt": p, "format_prompt": f"[{p}]", "generated_text": a} for p, a in answers.items()]
    if finish_reason:
        rows = [row | {"finish_reason": finish_reason} for row in rows]
    folder.mkdir(exist_ok=True)
    (folder / f"output_{seed}.json").write_text(json.dumps(rows))


def run(monkeypatch, folder: Path, *argv: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["post_process.py", "--generation_file_dir", str(folder), *argv])
    main()
    return json.loads((folder / "all_outputs.json").read_text())


def test_seeds_in_numeric_order_joined_by_prompt(monkeypatch, tmp_path):
    write_seed(tmp_path, 100, {"b": "b100", "a": "a100"})
    write_seed(tmp_path, 21, {"a": "a21", "b": "b21"})
    write_seed(tmp_path, 3, {"b": "b3", "a": "a3"})
    expected = [
        {"prompt": "a", "all_generated_responses": ["a3", "a21", "a100"]},
        {"prompt": "b", "all_generated_responses": ["b3", "b21", "b100"]},
    ]
    assert run(monkeypatch, tmp_path) == expected
    assert run(monkeypatch, tmp_path) == expected  # its own output is not read


def test_identical_responses_are_dropped(monkeypatch, tmp_path, capsys):
    for seed, b in ((1, "same"), (2, "same"), (3, "other")):
        write_seed(tmp_path, seed, {"a": "same", "b": b})
    assert run(monkeypatch, tmp_path) == [{"prompt": "b", "all_generated_responses": ["same", "same", "other"]}]
    report = capsys.readouterr().out
    assert "2 prompts;" in report and "1 prompts kept" in report
    assert "1 prompts dropped: all responses identical" in report


def test_truncated_responses(monkeypatch, tmp_path, capsys):
    write_seed(tmp_path, 1, {"a": "a1", "b": "b1"}, "stop")
    write_seed(tmp_path, 2, {"a": "a2", "b": "b2"}, "length")
    write_seed(tmp_path, 3, {"a": "a3", "b": "b1"}, "stop")
    rows = run(monkeypatch, tmp_path)
    assert [row["finish_reasons"] for row in rows] == [["stop", "length", "stop"]] * 2
    output = capsys.readouterr()
    assert "2 responses cut at their longest length" in output.out and "2 of 6 responses (33 %)" in output.err
    rows = run(monkeypatch, tmp_path, "--drop_truncated")
    assert rows == [{"prompt": "a", "all_generated_responses": ["a1", "a3"]}]
    assert "2 truncated responses dropped" in capsys.readouterr().out


def test_too_few_responses_left():
    rows = {
        1: {"a": answer("x", "stop"), "b": answer("x", "stop")},
        2: {"a": answer("y", "length"), "b": answer("y", "stop")},
    }
    joined, counts = join_by_prompt(rows, drop_truncated=True)
    assert [row["prompt"] for row in joined] == ["b"]
    assert counts["prompts dropped: fewer than two responses left"] == 1


def answer(text: str, finish_reason: str) -> dict[str, str]:
    return {"generated_text": text, "finish_reason": finish_reason}


def test_missing_prompts(monkeypatch, fails, tmp_path, capsys):
    write_seed(tmp_path, 1, {"a": "a1", "b": "b1", "c": "c1"})
    write_seed(tmp_path, 2, {"a": "a2", "b": "b2"})
    write_seed(tmp_path, 3, {"a": "a3"})
    error = fails(main, "--generation_file_dir", str(tmp_path))
    assert "output_2.json lacks 1 of the 3 prompts" in error and "'c'" in error and "--allow_missing" in error
    assert not (tmp_path / "all_outputs.json").exists()
    rows = run(monkeypatch, tmp_path, "--allow_missing")
    assert [len(row["all_generated_responses"]) for row in rows] == [3, 2]
    assert "3 responses missing from a seed" in capsys.readouterr().out


def test_other_prompts_altogether(fails, tmp_path):
    write_seed(tmp_path, 1, {"a": "a1"})
    write_seed(tmp_path, 2, {"z": "z2"})
    assert "lacks 1 of the 2 prompts" in fails(main, "--generation_file_dir", str(tmp_path))
    assert "no prompt is left" in fails(main, "--generation_file_dir", str(tmp_path), "--allow_missing")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("output_2.json", '[{"prompt": "a", "gener', ["output_2.json", "not JSON"]),
        ("output_2.json", '{"prompt": "a"}', ["output_2.json", "list"]),
        ("output_2.json", '[{"prompt": "a"}]', ["output_2.json", "row 0", "generated_text"]),
        ("output_2.json", '[{"prompt": "a", "generated_text": null}]', ["row 0", "generated_text is NoneType"]),
        ("output_two.json", "[]", ["output_two.json", "output_42.json"]),
        ("output_01.json", "[]", ["same seed"]),
        ("output_2.json", '["a"]', ["row 0", "object"]),
    ],
)
def test_bad_seed_file(fails, tmp_path, name, content, words):
    write_seed(tmp_path, 1, {"a": "a1"})
    (tmp_path / name).write_text(content)
    error = fails(main, "--generation_file_dir", str(tmp_path))
    assert all(word in error for word in words), error
    assert not (tmp_path / "all_outputs.json").exists()


def test_bad_folder(fails, tmp_path):
    assert "no folder" in fails(main, "--generation_file_dir", str(tmp_path / "none"))
    assert "no output_{seed}.json" in fails(main, "--generation_file_dir", str(tmp_path))
    write_seed(tmp_path, 1, {"a": "a1"})
    assert "two seeds or more" in fails(main, "--generation_file_dir", str(tmp_path))
    write_seed(tmp_path, 2, {"a": "a2"})
    assert "finish_reason" in fails(main, "--generation_file_dir", str(tmp_path), "--drop_truncated")
    with lock_folder(tmp_path):
        assert "another run" in fails(main, "--generation_file_dir", str(tmp_path))


def test_columns_of_the_prompts(monkeypatch, tmp_path):
    """What the seeds' rows say alike is the prompt's; what differs is the answer's."""
    for seed in (1, 2):
        rows = [{"prompt": "a", "generated_text": f"a{seed}", "kind": "x", "model": f"m{seed}"}]
        (tmp_path / f"output_{seed}.json").write_text(json.dumps(rows))
    expected = [{"prompt": "a", "all_generated_responses": ["a1", "a2"], "kind": "x"}]
    assert run(monkeypatch, tmp_path) == expected


def test_kills_at_every_file_operation(monkeypatch, tmp_path):
    out = tmp_path / "out"
    write_seed(out, 1, {"a": "a1", "b": "b1"})
    write_seed(out, 2, {"a": "a2", "b": "b2"})
    monkeypatch.setattr(sys, "argv", ["post_process.py", "--generation_file_dir", str(out)])
    stops = stops_of(main, out, tmp_path / "stops")
    whole = contents(out, "*.json")
    assert len(whole) == 3 and len(stops) > 2
    for stop in stops:
        stop.restore()
        main()
        assert contents(out, "*.json") == whole, stop


def test_real_decodes(shared, monkeypatch, tmp_path):
    """Real models' responses: all prompts kept, each in its model's place, whatever the order of the rows."""
    folder = tmp_path / "real"
    shutil.copytree(shared / "real_decodes", folder, copy_function=shutil.copy)
    folder.chmod(0o755)
    seeds = sorted(int(path.stem[7:]) for path in folder.glob("output_*.json"))
    by_seed = {seed: json.loads((folder / f"output_{seed}.json").read_text()) for seed in seeds}
    rows = run(monkeypatch, folder)
    kept = 0
    for row in rows:
        answers = [next(r["generated_text"] for r in by_seed[s] if r["prompt"] == row["prompt"]) for s in seeds]
        assert row["all_generated_responses"] == answers
        assert len(set(answers)) > 1
        kept += 1
    dropped = sum(
        len({next(r["generated_text"] for r in by_seed[s] if r["prompt"] == prompt) for s in seeds}) == 1
        for prompt in {r["prompt"] for r in by_seed[seeds[0]]}
    )
    assert kept + dropped == len(by_seed[seeds[0]])
    for seed in seeds:
        random.Random(seed).shuffle(by_seed[seed])
        path = folder / f"output_{seed}.json"
        path.unlink()
        path.write_text(json.dumps(by_seed[seed]))
    assert run(monkeypatch, folder) == rows


@pytest.mark.parametrize("where", [ROOT, ROOT / "on_policy_data_gen"])
def test_command_line(tmp_path, where):
    write_seed(tmp_path, 1, {"a": "a1"})
    write_seed(tmp_path, 2, {"a": "a2"})
    script = str((ROOT / "on_policy_data_gen" / "post_process.py").relative_to(where))
    result = run_script(sys.executable, script, "--generation_file_dir", str(tmp_path), cwd=where)
    assert result.returncode == 0, result.stderr
    (tmp_path / "output_2.json").write_text("[")
    result = run_script(sys.executable, script, f"--generation_file_dir={tmp_path}", cwd=where)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
