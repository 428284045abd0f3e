"""scripts/run_reward.py on a tiny model; its result scores as reward_model_annotate.py reads it."""

import json
import sys

import torch
from conftest import ROOT, make_pairs, write_jsonl

from run_reward import main

REWARD = {"beta": None, "gamma_beta_ratio": None, "max_prompt_length": None, "bf16": False}


def test_a_reward_model_learns_and_scores(config, tmp_path, monkeypatch):
    path = config(**REWARD, max_steps=25, do_eval=True, dataset_splits=["train", "test"])
    monkeypatch.setattr(sys, "argv", ["run_reward.py", path])
    main()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.9
    monkeypatch.syspath_prepend(str(ROOT / "on_policy_data_gen"))
    from rewards import load_reward_model

    model = load_reward_model(str(tmp_path / "out"))
    model.load(torch.device("cpu"), torch.float32)
    right = 0
    for row in make_pairs(8, offset=100):
        chosen, rejected = model.score(row["prompt"], [row[side][-1]["content"] for side in ("chosen", "rejected")])
        right += chosen > rejected
    assert right >= 7


def test_bad_input(config, tmp_path, fails):
    assert "use_peft" in fails(main, config(**REWARD, use_peft=True))
    write_jsonl(tmp_path / "sft" / "train.jsonl", [{"messages": row["chosen"]} for row in make_pairs(4)])
    error = fails(main, config(**REWARD, dataset_mixer={str(tmp_path / "sft"): 1.0}, dataset_splits=["train"]))
    assert "no column chosen" in error and "messages" in error
