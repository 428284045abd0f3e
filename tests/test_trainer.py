"""SimPOTrainer from Python, as users of the original call it."""

import os

import pytest
import torch
from conftest import make_pairs
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForCausalLM

from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.pairs import format_pairs
from simpo.train.launcher import remove_stale_build_locks
from simpo.train.trainer import prepare_policy
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer


@pytest.fixture
def pairs(tokenizer):
    rows = {"train": make_pairs(12), "test": make_pairs(6, offset=50)}
    return format_pairs(
        DatasetDict({split: Dataset.from_list(r) for split, r in rows.items()}), tokenizer, DataArguments()
    )


@pytest.fixture
def args(tmp_path):
    return SimPOConfig(
        output_dir=str(tmp_path), max_length=96, max_prompt_length=48, max_steps=2, per_device_train_batch_size=2,
        per_device_eval_batch_size=4, use_cpu=True, report_to="none", learning_rate=1e-3, save_strategy="no",
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip


def test_the_originals_arguments_and_methods(pairs, args, tokenizer, model_folder):
    trainer = SimPOTrainer(model_folder, args, None, pairs["train"], pairs["test"], tokenizer=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    policy = trainer.concatenated_forward(trainer.model, batch)
    losses, chosen_rewards, rejected_rewards = trainer.simpo_loss(policy.chosen_logps, policy.rejected_logps)
    assert losses.shape == chosen_rewards.shape == rejected_rewards.shape == (2,)
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, "eval")
    torch.testing.assert_close(loss, losses.mean())
    assert metrics["eval_rewards/margins"] == pytest.approx((chosen_rewards - rejected_rewards).mean().item(), rel=1e-5)
    row = trainer.tokenize_row(pairs["train"][0])
    assert row["chosen_input_ids"] == trainer.train_dataset[0]["chosen_input_ids"]
    logits = torch.randn(2, 5, 7)
    labels = torch.tensor([[-100, 1, 2, 3, 4], [-100, -100, 1, 2, -100]])
    assert SimPOTrainer.get_batch_logps(logits, labels).shape == (2,)
    assert trainer.train().global_step == 2


def test_concatenated_forward_equals_each_response_alone(pairs, args, tokenizer, model_folder):
    trainer = SimPOTrainer(model_folder, args, train_dataset=pairs["train"], processing_class=tokenizer)
    rows = [trainer.train_dataset[i] for i in range(3)]
    together = trainer.concatenated_forward(trainer.model, trainer.data_collator(rows))
    for i, row in enumerate(rows):
        for name, logps in (("chosen", together.chosen_logps), ("rejected", together.rejected_logps)):
            ids, labels = (torch.tensor([row[f"{name}_{what}"]]) for what in ("input_ids", "labels"))
            alone = SimPOTrainer.get_batch_logps(trainer.model(ids).logits, labels)
            torch.testing.assert_close(logps[i], alone[0], rtol=1e-5, atol=1e-6)


def test_evaluation_weighs_an_uneven_last_batch_by_its_pairs(pairs, args, tokenizer, model_folder):
    trainer = SimPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder), args, train_dataset=pairs["train"],
        eval_dataset=pairs["test"], processing_class=tokenizer, compute_metrics=accuracy,
    )  # fmt: skip
    metrics = trainer.evaluate()
    whole = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        expected, _ = trainer.get_batch_loss_metrics(trainer.model, whole, "eval")
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)  # batches of 4 and 2
    # compute_metrics sees the rewards of all pairs; the logged accuracy is the mean over batches, as in the original
    policy = trainer.concatenated_forward(trainer.model, whole)
    right = policy.chosen_logps > policy.rejected_logps
    assert metrics["eval_accuracy"] == pytest.approx(right.float().mean().item())
    batches = [right[:4].float().mean(), right[4:].float().mean()]
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(batches).item() / 2)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions[:, 0] > prediction.predictions[:, 1]).mean())}


def test_sft_term(pairs, args, tokenizer, model_folder):
    args.sft_weight = 0.5
    trainer = SimPOTrainer(model_folder, args, train_dataset=pairs["train"], processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    policy = trainer.concatenated_forward(trainer.model, batch)
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    labels, ids = batch["labels"][:, 0], batch["input_ids"][:, 0]
    logits = trainer.model(ids, attention_mask=batch["attention_mask"][:, 0]).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(metrics["sft_loss"], nll.detach())
    pair = trainer.simpo_loss(policy.chosen_logps, policy.rejected_logps).losses.mean()
    torch.testing.assert_close(loss, pair + 0.5 * nll)


def test_dropout_is_off(pairs, args, tokenizer, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder, attention_dropout=0.5)
    model.model.layers[0].mlp.down_proj = torch.nn.Sequential(model.model.layers[0].mlp.down_proj, torch.nn.Dropout())
    trainer = SimPOTrainer(model, args, train_dataset=pairs["train"], processing_class=tokenizer)
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    first, second = (trainer.concatenated_forward(trainer.model, batch).chosen_logps for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "dropouts"),
    [
        ("starcoder2", {"residual_dropout": 0.5, "embedding_dropout": 0.5}),
        ("opt", {"dropout": 0.5, "layerdrop": 0.5, "word_embed_proj_dim": 32}),
        ("gpt2", {"resid_pdrop": 0.5}),
    ],
)
def test_dropout_that_is_no_layer_is_off(args, family, dropouts):
    """Models apply it as a function too, by a number that they keep in an attribute."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model(family, **sizes, **heads, **dropouts)
    model = prepare_policy(AutoModelForCausalLM.from_config(config), args, None).train()
    first, second = (model(torch.arange(16).view(1, 16)).logits for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_locks_of_killed_compilations_are_removed_and_held_ones_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    names = ("one", "two", "node1/one", "node1/two")
    locks = [tmp_path / name / "lock" for name in names]
    stale, held, _, held_here = locks
    for lock in locks:
        lock.parent.mkdir(parents=True)
        lock.touch()
    with held.open(), held_here.open():
        for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        remove_stale_build_locks()  # the node's second process
        assert all(lock.exists() for lock in locks) and os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "node1")
        monkeypatch.setenv("LOCAL_RANK", "0")
        remove_stale_build_locks()  # its first; another node may be compiling outside the node's own folder
        assert [lock.exists() for lock in locks] == [True, True, False, True]
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        remove_stale_build_locks()
        assert [lock.exists() for lock in locks] == [False, True, False, True]
    assert f"removing {stale}" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(pairs, args, tokenizer, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.resize_token_embeddings(100)
    with pytest.raises(UserError, match="the model embeds 100"):
        SimPOTrainer(model, args, train_dataset=pairs["train"], processing_class=tokenizer)


def test_grouped_by_length(pairs, args, tokenizer, model_folder):
    args.train_sampling_strategy = "group_by_length"
    trainer = SimPOTrainer(model_folder, args, train_dataset=pairs["train"], processing_class=tokenizer)
    row = trainer.train_dataset[0]
    assert row["length"] == max(len(row["chosen_input_ids"]), len(row["rejected_input_ids"]))
    assert trainer.train().global_step == 2
