"""A run with a published run's settings is set beside what others saw, whatever its file is called."""

import csv
import json
import math
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_pairs, write_jsonl

from report import main as report
from reporting.published import beside_others
from reporting.read import read_run
from run_simpo import main
from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.train.published import TABLE, published_run
from simpo_config import SimPOConfig
from tiny_models import tiny_model


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


NAMES = [row["configuration"] for row in rows_of(TABLE)]
OTHERS = "loss  1.3755   margin   0.6589   accuracy 0.661   at step 400 of RAY2L/Llama-3-Instruct-8B-SimPO"


def settings_of(name: str, **changes) -> dict:
    parser = H4ArgumentParser((ModelArguments, DataArguments, SimPOConfig))
    model, data, args = parser.parse([f"{ROOT}/training_configs/{name}.yaml"], {"use_cpu": True})
    settings = asdict(model) | asdict(data) | args.to_sanitized_dict() | {"objective": "simpo"}
    assert changes.keys() <= settings.keys()
    return settings | changes


@pytest.mark.parametrize("name", NAMES)
def test_every_published_file_is_known_by_its_settings(name, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    run = published_run(settings_of(name), 128)
    assert run is not None and run.name == name
    text = (ROOT / "training_configs" / f"{name}.yaml").read_text()
    assert run.scores in " ".join(text.splitlines()[1].split())  # "# Published: AlpacaEval 2 LC 44.7, ..."
    if run.evaluation:
        logged = {key.removeprefix("eval_rewards/"): value for key, value in run.evaluation.items()}
        assert logged["chosen"] - logged["rejected"] == pytest.approx(logged["margins"], abs=2e-4) and run.seen


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "alphapo"}, {"beta": 2.0}, {"learning_rate": 2e-6}, {"sft_weight": 0.1}, {"num_train_epochs": 2},
        {"max_steps": 100}, {"use_peft": True}, {"dataset_mixer": {"princeton-nlp/llama3-ultrafeedback": 0.5}},
        {"dataset_mixer": {"princeton-nlp/llama3-ultrafeedback": 1.0, "mine": 1.0}}, {"dataset_mixer": {"mine": 1.0}},
        {"model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct"}, {"max_prompt_length": 900},
    ],
    ids=str,
)  # fmt: skip
def test_other_runs_are_not_taken_for_it(changes):
    assert published_run(settings_of("llama-3-8b-instruct-simpo"), 128)
    assert published_run(settings_of("llama-3-8b-instruct-simpo", **changes), 128) is None
    assert published_run(settings_of("llama-3-8b-instruct-simpo"), 64) is None


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small model and few pairs in folders of the published names: one step of the published run's settings."""
    folder = tmp_path_factory.mktemp("published")
    model, data = folder / "Meta-Llama-3-8B-Instruct", folder / "llama3-ultrafeedback"
    tiny_model(model)
    write_jsonl(data / "train.jsonl", make_pairs(128))
    write_jsonl(data / "test.jsonl", make_pairs(4, offset=200))
    return {"model_name_or_path": str(model), "dataset_mixer": {str(data): 1.0}}


def test_the_console_and_the_report_show_what_others_saw(published, tmp_path, monkeypatch, capsys):
    settings = yaml.safe_load((ROOT / "training_configs/llama-3-8b-instruct-simpo.yaml").read_text()) | published
    settings |= {"gradient_accumulation_steps": 64, "output_dir": str(tmp_path / "out"), "report_to": "none"}
    settings |= {"use_cpu": True, "bf16": False, "attn_implementation": "sdpa", "gradient_checkpointing": False}
    settings |= {"preprocessing_num_workers": 1, "gradient_checkpointing_kwargs": None, "logging_steps": 1}
    path = tmp_path / "of_my_own.yaml"
    path.write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", str(path)])
    main()
    lines = capsys.readouterr().out.splitlines()
    scores = "AlpacaEval 2 LC 44.7, Arena-Hard 33.8"
    assert f"  published   as llama-3-8b-instruct-simpo (the released model: {scores})" in lines
    assert f"  others saw  {OTHERS}" in lines
    mine, others = lines[-4:-2]
    assert mine.startswith("evaluated:  loss ") and others == f"others saw: {OTHERS}"
    assert [mine.index(word) for word in ("margin", "accuracy")] == [others.index(w) for w in ("margin", "accuracy")]

    stage = read_run(tmp_path / "out", "out").stages[0]
    assert dict(beside_others(stage)) == {
        "settings published as": "llama-3-8b-instruct-simpo",
        "the released model": scores,
        "loss: others saw": "1.3755",
        "reward accuracy, %: others saw": "66.1",
        "reward margin: others saw": "0.6589",
        "others saw this at": "step 400 of RAY2L/Llama-3-Instruct-8B-SimPO",
    }
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "out"), "--output", str(tmp_path / "report.html")])
    report()
    assert "loss: others saw" in (tmp_path / "report.html").read_text()
    stage.data_report["train"]["rows"] *= 2  # another number of pairs per step
    assert not list(beside_others(stage))


def test_the_scores_are_those_of_the_evaluation():
    """One fact stands in two tables: the package's, and the evaluation's, which is not installed with it."""
    released = {
        "mistral-7b-base-simpo": "Mistral-7B-Base-SFT-SimPO",
        "mistral-7b-instruct-simpo": "Mistral-7B-Instruct-SimPO",
        "llama-3-8b-base-simpo": "Llama-3-Base-8B-SFT-SimPO",
        "llama-3-8b-instruct-simpo": "Llama-3-Instruct-8B-SimPO",
        "llama-3-8b-instruct-simpo-v2": "Llama-3-Instruct-8B-SimPO-v0.2",
        "gemma-2-9b-it-simpo": "gemma-2-9b-it-SimPO",
    }
    evaluated = {row["model"]: row for row in rows_of(ROOT / "eval" / "published_results.csv")}
    assert released.keys() == set(NAMES)
    for row in rows_of(TABLE):
        of_evaluation = evaluated[f"princeton-nlp/{released[row['configuration']]}"]
        assert all(row[name] == of_evaluation[name] for name in ("alpacaeval2_lc", "arenahard_wr"))


def test_the_page_has_the_tables_values():
    """docs/reproduce.md and README.md print the values of the package's table, and what follows from them."""
    page, front = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/reproduce.md", "README.md"))
    for row in rows_of(TABLE):
        first_loss = math.log1p(math.exp(float(row["beta"]) * float(row["gamma_beta_ratio"])))
        ends = f"{first_loss:.3f} | {row['alpacaeval2_lc']} | {row['arenahard_wr']} |"
        for text in (page, front):
            assert re.search(rf"^\| {row['configuration']} \|.*\| {re.escape(ends)}$", text, re.M), row["configuration"]
        if row["eval_loss"]:
            rewards = ", ".join(row[f"eval_rewards/{side}"] for side in ("chosen", "rejected"))
            seen = [row["eval_loss"], rewards, row["eval_rewards/margins"], row["eval_rewards/accuracies"]]
            assert f" | {' | '.join(seen)} | [{row['seen'].split()[-1]}](" in page
