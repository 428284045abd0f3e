"""scripts/run_sft.py on a tiny model, with the tokenizers that add BOS themselves and those that do not."""

import json
import sys

import pytest
from conftest import make_pairs, write_jsonl

from run_sft import main
from tiny_models import tiny_model, tiny_tokenizer


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
def test_sft_learns_with_one_bos(sft_config, tmp_path, monkeypatch, capsys, adds_bos):
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
    run_sft.main()
    assert len(kept) == 1 and "holds this run, finished" in capsys.readouterr().out


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


def kept_by(trainer: str, main, monkeypatch, path: str) -> dict:
    """The arguments with which a script makes its trainer."""
    kept = {}

    def stop(**arguments):
        kept.update(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"trl.{trainer}", stop)
    monkeypatch.setattr(sys, "argv", ["script.py", path])
    with pytest.raises(SystemExit):
        main()
    return kept


def test_without_a_test_split_nothing_is_evaluated(sft_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_sft.py", sft_config(dataset_splits=["train"], do_eval=True, max_steps=1)])
    main()
    assert "dataset_splits names no test split: training without evaluation" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_without_a_training_split(sft_config, fails):
    assert "so there is nothing to train on" in fails(main, sft_config(dataset_splits=["test"]))


ODD = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    {"messages": [{"role": "user", "content": "Hi"}]},  # no answer
    {"messages": []},
    {"messages": [{"role": "user", "content": "word " * 90}, {"role": "assistant", "content": "Hello."}]},  # too long
]


@pytest.mark.parametrize("completion_only", [False, True])
def test_rows_that_cannot_be_used_are_left_out_and_counted(sft_config, tmp_path, monkeypatch, capsys, completion_only):
    write_jsonl(tmp_path / "odd" / "train.jsonl", ODD * 3)
    changes = {"dataset_mixer": {str(tmp_path / "odd"): 1.0}, "dataset_splits": ["train"]}
    path = sft_config(**changes, completion_only_loss=completion_only)
    rows = kept_by("SFTTrainer", main, monkeypatch, path)["train_dataset"]
    said = capsys.readouterr()
    if completion_only:  # only where there is an answer within max_length
        assert len(rows) == 3 and "3 conversations (cut 0, dropped without an answer 3)" in said.out
        assert "6 of 12 rows left out" in said.err and "must end with an assistant message" in said.err
    else:
        assert len(rows) == 9 and "9 conversations (cut 3, dropped without an answer 0)" in said.out
        assert "3 of 12 rows left out" in said.err and "messages is empty" in said.err


def test_only_the_last_answer_of_several_turns_counts(sft_config, tmp_path, monkeypatch):
    turns = [("user", "One?"), ("assistant", "First."), ("user", "Two?"), ("assistant", "Second.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    write_jsonl(tmp_path / "turns" / "train.jsonl", [row] * 4)
    path = sft_config(dataset_mixer={str(tmp_path / "turns"): 1.0}, dataset_splits=["train"], completion_only_loss=True)
    (row, *_) = kept_by("SFTTrainer", main, monkeypatch, path)["train_dataset"]
    trained = [i for i, counts in zip(row["input_ids"], row["completion_mask"], strict=True) if counts]
    assert tiny_tokenizer().decode(trained) == "Second.<|eot_id|>"
    assert "First." in tiny_tokenizer().decode(row["input_ids"])


@pytest.mark.parametrize("completion_only", [False, True])
def test_packing_cuts_the_conversations_in_a_row(sft_config, tmp_path, monkeypatch, completion_only):
    """As the alignment-handbook packs: no token is lost, and every row but the last has max_length tokens."""
    from trl import SFTTrainer

    kept = []
    monkeypatch.setattr("trl.SFTTrainer", lambda *a, **k: kept.append(SFTTrainer(*a, **k)) or kept[-1])
    path = sft_config(
        packing=True, packing_strategy="wrapped", do_eval=True, max_steps=2, completion_only_loss=completion_only
    )
    alone = kept_by_alone(path, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["run_sft.py", path])
    main()
    rows = kept[0].train_dataset
    assert {len(row["input_ids"]) for row in list(rows)[:-1]} == {64}
    assert [i for row in rows for i in row["input_ids"]] == [i for row in alone for i in row["input_ids"]]
    masked = sum(label == -100 for row in rows for label in row["labels"])
    assert masked == (sum(mask == 0 for row in alone for mask in row["completion_mask"]) if completion_only else 0)
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_loss"] > 0


def kept_by_alone(path: str, monkeypatch) -> list[dict]:
    """The conversations that packing was given, in the order in which it shuffles them."""
    with monkeypatch.context() as patch:
        return list(kept_by("SFTTrainer", main, patch, path)["train_dataset"])


def test_sft_needs_messages(sft_config, pairs_folder, fails):
    path = sft_config(dataset_mixer={pairs_folder: 1.0}, dataset_splits=["train"])
    assert "split train: has no column messages (found: prompt, chosen, rejected)" in fails(main, path)
