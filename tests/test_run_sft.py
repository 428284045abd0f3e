"""scripts/run_sft.py on a tiny model, with the tokenizers that add BOS themselves and those that do not."""

import json
import sys

import pytest
from conftest import make_pairs, write_jsonl
from tiny_models import tiny_model, tiny_tokenizer

from run_sft import main


@pytest.fixture
def sft_config(config, tmp_path):
    conversations = [{"messages": row["chosen"]} for row in make_pairs(24)]
    write_jsonl(tmp_path / "sft" / "train.jsonl", conversations[:16])
    write_jsonl(tmp_path / "sft" / "test.jsonl", conversations[16:])

    def write(**changes):
        settings = {
            "dataset_mixer": {str(tmp_path / "sft"): 1.0},
            "dataset_splits": ["train", "test"],
            "max_seq_length": 64,
            "beta": None,
            "gamma_beta_ratio": None,
            "max_length": None,
            "max_prompt_length": None,
            "bf16": False,
        }
        return config(**(settings | changes))

    return write


@pytest.mark.parametrize("adds_bos", [False, True])
def test_sft_learns_with_one_bos(sft_config, tmp_path, monkeypatch, adds_bos):
    from trl import SFTTrainer

    import run_sft

    kept = []
    monkeypatch.setattr("trl.SFTTrainer", lambda *a, **k: kept.append(SFTTrainer(*a, **k)) or kept[-1])
    model = tiny_model(tmp_path / "model", tokenizer=tiny_tokenizer(adds_bos))
    path = sft_config(model_name_or_path=model, max_steps=30, learning_rate=1e-2, do_eval=True)
    monkeypatch.setattr(sys, "argv", ["run_sft.py", path])
    run_sft.main()
    ids = kept[0].train_dataset[0]["input_ids"]
    assert ids[0] == 0 and ids.count(0) == 1 and len(ids) <= 64
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    steps = [entry["loss"] for entry in history if "loss" in entry]
    assert steps[-1] < 0.6 * steps[0]
    assert (tmp_path / "out" / "model.safetensors").exists() and (tmp_path / "out" / "README.md").exists()


def test_completion_only_loss_masks_all_but_the_answer(sft_config, monkeypatch):
    import run_sft

    kept = []
    monkeypatch.setattr("trl.SFTTrainer", lambda *a, **k: kept.append(k["train_dataset"]) or 1 / 0)
    monkeypatch.setattr(sys, "argv", ["run_sft.py", sft_config(completion_only_loss=True)])
    with pytest.raises(ZeroDivisionError):
        run_sft.main()
    tokenizer = tiny_tokenizer()
    row = kept[0][0]
    answer = [i for i, kept_token in zip(row["input_ids"], row["completion_mask"], strict=True) if kept_token]
    text = tokenizer.decode(answer)
    assert text.endswith("<|eot_id|>") and " is " in text and "<|start_header_id|>" not in text
    assert sum(row["completion_mask"]) == len(answer) < len(row["input_ids"])


def test_sft_needs_messages(sft_config, pairs_folder, fails):
    path = sft_config(dataset_mixer={pairs_folder: 1.0}, dataset_splits=["train"])
    assert "train data: has no column messages (found: prompt, chosen, rejected)" in fails(main, path)
