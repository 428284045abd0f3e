"""docs/extending.md: every example, as it stands on the page, put where its first line says."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import benchmarks
import pair_selection
import rewards
import simpo.objectives
from simpo.logps.families import FAMILIES

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = {code.splitlines()[0].removeprefix("# "): code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S)}


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Put an example into its package, in effect."""

    def put(place: str, package) -> None:
        (tmp_path / Path(place).name).write_text(EXAMPLES[place], encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    yield put
    for package in (simpo.objectives, rewards, benchmarks):
        for name in {Path(place).stem for place in EXAMPLES}:
            sys.modules.pop(f"{package.__name__}.{name}", None)
            vars(package).pop(name, None)


def test_examples_are_short():
    assert len(EXAMPLES) == 5
    assert all(len(code.splitlines()) <= 30 for code in EXAMPLES.values())


def test_an_objective(add, config, monkeypatch, tmp_path, capsys):
    import run_preference

    add("simpo/objectives/hinge_dpo.py", simpo.objectives)
    path = config(objective="hinge_dpo", beta=0.1, gamma_beta_ratio=None, max_steps=2)
    monkeypatch.setattr(sys, "argv", ["run_preference.py", path])
    run_preference.main()
    assert "hinge_dpo" in capsys.readouterr().out
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["loss"] == pytest.approx(1, abs=1e-3)  # policy and reference are equal at first


def test_a_source_of_rewards_and_a_pair_rule(add, monkeypatch, tmp_path):
    import reward_model_annotate

    add("on_policy_data_gen/rewards/brevity.py", rewards)
    monkeypatch.setitem(pair_selection.PAIR_RULES, "best_of_short", None)  # taken away again afterwards
    exec(EXAMPLES["on_policy_data_gen/pair_selection.py"], vars(pair_selection))
    rows = [
        {"prompt": f"Ask {i}", "all_generated_responses": ["one two three", "one", "one two three four five six"]}
        for i in range(4)
    ]
    (tmp_path / "all_outputs.json").write_text(json.dumps(rows))
    options = ["--generation_file", tmp_path / "all_outputs.json", "--output_dir", tmp_path / "out"]
    options += ["--reward_model", "brevity:6", "--pair_selection", "best_of_short", "--test_fraction", "0.25"]
    monkeypatch.setattr(sys, "argv", ["reward_model_annotate.py", *map(str, options)])
    reward_model_annotate.main()
    pairs = json.loads((tmp_path / "out" / "all_outputs_bin.json").read_text())
    assert [row["all_rm_scores"] for row in pairs] == [[-3.0, -5.0, 0.0]] * 4
    assert {row["chosen"][-1]["content"] for row in pairs} == {"one two three"}
    assert {row["rejected"][-1]["content"] for row in pairs} == {"one"}


def test_a_benchmark(add, tmp_path):
    """Its way through the three commands: test_eval_benchmarks.py, which runs the same file."""
    place = "eval/benchmarks/riddles.py"
    added = (ROOT / "tests" / "added_benchmark" / "riddles.py").read_text(encoding="utf-8")
    assert EXAMPLES[place] == f"# {place}\n{added}"


def test_a_model_family(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(FAMILIES, "nemotron", raising=False)
    script = tmp_path / "prove_nemotron.py"
    script.write_text(EXAMPLES["prove_nemotron.py"], encoding="utf-8")
    runpy.run_path(str(script))
    assert "equals the plain one" in capsys.readouterr().out
    FAMILIES.pop("nemotron")
