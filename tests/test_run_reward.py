"""scripts/run_reward.py on a tiny model; its result scores as reward_model_annotate.py reads it."""

import json
import sys

import pytest
import torch
from conftest import ROOT, make_pairs, write_jsonl
from test_run_sft import kept_by
from transformers import AutoTokenizer

from run_reward import main
from simpo.chat.ids import ContentGuard
from simpo.data.comparisons import scored_inputs
from tiny_models import tiny_tokenizer
from tiny_reward_models import tiny_deberta, tiny_encoder

pytestmark = pytest.mark.slow  # whole runs

REWARD = {"beta": None, "gamma_beta_ratio": None, "max_prompt_length": None, "bf16": False}


def test_a_reward_model_learns_and_scores(config, tmp_path, monkeypatch, capsys):
    path = config(**REWARD, max_steps=25, do_eval=True, dataset_splits=["train", "test"])
    monkeypatch.setattr(sys, "argv", ["run_reward.py", path])
    main()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.9
    main()
    assert "holds this run, finished" in capsys.readouterr().out
    monkeypatch.syspath_prepend(str(ROOT / "on_policy_data_gen"))
    from rewards import load_reward_model

    model = load_reward_model(str(tmp_path / "out"))
    model.load(torch.device("cpu"), torch.float32)
    right = 0
    for row in make_pairs(8, offset=100):
        chosen, rejected = model.score(row["prompt"], [row[side][-1]["content"] for side in ("chosen", "rejected")])
        right += chosen > rejected
    assert right >= 7


@pytest.mark.parametrize("family", ["deberta", "bert", "roberta"])
def test_an_encoder_without_a_chat_template_learns_and_scores(config, tmp_path, monkeypatch, family):
    """What is trained on is what is scored: segment ids for BERT, none for the others."""
    base = tiny_deberta(tmp_path / "base") if family == "deberta" else tiny_encoder(tmp_path / "base", family, 128)
    path = config(
        **REWARD, model_name_or_path=base, max_steps=40, learning_rate=3e-3, max_length=128, do_eval=True,
        dataset_splits=["train", "test"],
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["run_reward.py", path])
    main()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.8
    monkeypatch.syspath_prepend(str(ROOT / "on_policy_data_gen"))
    from rewards import load_reward_model

    model = load_reward_model(str(tmp_path / "out"))
    assert model.tokenizer.chat_template is None
    row = make_pairs(1)[0]
    trained = scored_inputs(ContentGuard(AutoTokenizer.from_pretrained(tmp_path / "out")), row["chosen"])
    scored = model.encode((row["prompt"], row["chosen"][-1]["content"])).inputs
    assert {name: scored[name] for name in trained} == trained
    assert ("token_type_ids" in trained) == (family == "bert")
    model.load(torch.device("cpu"), torch.float32)
    right = 0
    for row in make_pairs(8, offset=100):
        chosen, rejected = model.score(row["prompt"], [row[side][-1]["content"] for side in ("chosen", "rejected")])
        right += chosen > rejected
    assert right >= 7


def test_rows_that_cannot_be_used_are_left_out_and_counted(config, tmp_path, monkeypatch, capsys):
    good, ask = make_pairs(8), [{"role": "user", "content": "Hi"}]
    same, long = [*ask, {"role": "assistant", "content": "Yes."}], [*ask, {"role": "assistant", "content": "no " * 200}]
    odd = [{"chosen": same, "rejected": same}, {"chosen": same, "rejected": long}, {"chosen": ask, "rejected": same}]
    bare = [{"prompt": ask, "chosen": same[1:], "rejected": [{"role": "assistant", "content": "No."}]}]
    rows = [{"prompt": None, **row} for row in odd] + bare + [{**row, "prompt": None} for row in good]
    write_jsonl(tmp_path / "odd" / "train.jsonl", rows)
    changes = {"dataset_mixer": {str(tmp_path / "odd"): 1.0}, "dataset_splits": ["train"], "do_eval": True}
    rows = kept_by("RewardTrainer", main, monkeypatch, config(**REWARD, **changes))["train_dataset"]
    said = capsys.readouterr()
    assert "9 pairs (dropped malformed 1, dropped identical 1, dropped too long 1)" in said.out
    assert "1 of 12 rows left out" in said.err and "row 2: chosen must end with an assistant message" in said.err
    assert "names no test split: training without evaluation" in said.err
    texts = [tiny_tokenizer().decode(row["chosen_ids"]) for row in rows]
    assert all("user" in text and "assistant" in text for text in texts)  # answers alone come after their prompt


def test_bad_input(config, tmp_path, fails):
    assert "use_peft" in fails(main, config(**REWARD, use_peft=True))
    write_jsonl(tmp_path / "sft" / "train.jsonl", [{"messages": row["chosen"]} for row in make_pairs(4)])
    error = fails(main, config(**REWARD, dataset_mixer={str(tmp_path / "sft"): 1.0}, dataset_splits=["train"]))
    assert "no column chosen" in error and "messages" in error
