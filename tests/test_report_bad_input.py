"""The report: files that are malformed, and commands that are refused."""

from pathlib import Path

import pytest
from test_report import training, write

from report import main
from reporting.read import names_of
from simpo.console import UserError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainer_state.json", '{"log_history": [', "trainer_state.json: not JSON"),
        ("trainer_state.json", {"log_history": 3}, "trainer_state.json: log_history is not in the form"),
        ("run_config.yaml", "a: [", "run_config.yaml: not YAML"),
        ("data_report.json", {"train": {"rows": "x"}}, "data_report.json: train is not"),
        ("all_outputs_rm.json", {}, "all_outputs_rm.json: the content (a list is expected)"),
        ("all_outputs_rm.json", [{"all_rm_scores": []}], "all_outputs_rm.json, row 0: all_rm_scores"),
        ("all_outputs_rm.json", '[{"all_rm_scores": [NaN]}]', "all_outputs_rm.json, row 0: all_rm_scores"),
        (
            "all_outputs_bin.json",
            [{"all_rm_scores": [1], "all_generated_responses": ["x"], "chosen": [], "rejected": []}],
            "all_outputs_bin.json, row 0: chosen or rejected is not one",
        ),
        ("answers_after.json", [{"prompt": "p"}], "answers_after.json, row 0: has no field 'answer'"),
        ("answers_after.json", [{"prompt": "p", "answer": "", "correct": 1}], "answers_after.json, row 0: correct"),
        ("generations.jsonl", '{"step": 1', "generations.jsonl, line 1: not JSON"),
        ("summary.json", {"n": "x"}, "summary.json: n is not in the form"),
        ("scores.json", {"model": 3}, "scores.json: model is not in the form"),
    ],
)
def test_malformed_files_are_named(tmp_path, fails, name, content, message):
    training(tmp_path / "run")
    write(tmp_path / "run" / name, content)
    assert message in fails(main, str(tmp_path / "run"), "--output", str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_refused(tmp_path, fails):
    output = ["--output", str(tmp_path / "report.html")]
    assert "no such folder" in fails(main, str(tmp_path / "none"), *output)
    (tmp_path / "empty").mkdir()
    assert "holds nothing to report" in fails(main, str(tmp_path / "empty"), *output)
    run = str(training(tmp_path / "run"))
    assert "given twice" in fails(main, run, run, *output)
    assert "shows 8 at most" in fails(main, *[run] * 9, *output)
    assert "cannot be written" in fails(main, run, "--output", f"{run}/run_config.yaml/report.html")


def test_runs_are_named_by_what_tells_them_apart():
    assert names_of([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert names_of([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="given twice"):
        names_of([Path("x/a"), Path("x/../x/a")])
