"""The nine training files of the originals, in their own spelling: each trains a tiny model through its script."""

import json
import sys

import pytest
import yaml
from conftest import ROOT, make_pairs, write_jsonl

import run_sft
import run_simpo
import run_wpo
from simpo.chat.template import TEMPLATES

FILES = {
    "mistral-7b-base-simpo": run_simpo, "mistral-7b-instruct-simpo": run_simpo, "llama-3-8b-base-simpo": run_simpo,
    "llama-3-8b-instruct-simpo": run_simpo, "llama-3-8b-instruct-simpo-v2": run_simpo, "gemma-2-9b-it-simpo": run_simpo,
    "llama-3-8b-base-sft": run_sft, "mistral": run_wpo, "llama3_instruct": run_wpo,
}  # fmt: skip
OLD = {"eval_strategy": "evaluation_strategy", "warmup_steps": "warmup_ratio"}


def as_published(name: str) -> dict:
    """The shipped file with the originals' keys: older names, and templates as text."""
    settings = yaml.safe_load((ROOT / "training_configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = {OLD.get(key, key): value for key, value in settings.items()}
    if settings.get("chat_template") in TEMPLATES:
        settings["chat_template"] = TEMPLATES[settings["chat_template"]].read_text()
    if FILES[name] is run_sft:
        settings["max_seq_length"] = settings.pop("max_length")
    if FILES[name] is run_wpo:
        settings["use_flash_attention_2"] = settings.pop("attn_implementation") == "flash_attention_2"
    return settings


def test_templates_are_text_in_two_of_them():
    found = [name for name in FILES if as_published(name).get("chat_template", "").startswith("{")]
    assert found == ["gemma-2-9b-it-simpo", "llama-3-8b-base-sft"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_trains(name, model_folder, tmp_path, monkeypatch, capsys):
    rows = make_pairs(10)
    for row in rows:
        row["messages"] = row["chosen"]
    write_jsonl(tmp_path / "data" / "train.jsonl", rows[:6])
    write_jsonl(tmp_path / "data" / "test.jsonl", rows[6:])
    settings = as_published(name) | {
        "model_name_or_path": model_folder,
        "dataset_mixer": {str(tmp_path / "data"): 1.0},
        "dataset_splits": ["train", "test"],
        "preprocessing_num_workers": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "report_to": "none",
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    argv = [str(tmp_path / f"{name}.yaml"), "--use_cpu=true"]
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])
    FILES[name].main()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_loss"] > 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    err = capsys.readouterr().err
    assert "evaluation_strategy -> eval_strategy" in err and "warmup_ratio -> warmup_steps" in err
    assert ("pairs per optimizer step; the paper's results need 128" in err) == (FILES[name] is not run_sft)
