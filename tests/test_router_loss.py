"""Mixtures of experts: the router's loss that a config asks for is trained on, the same on both paths."""

import pytest
import torch
from conftest import make_pairs
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM

from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.pairs import format_pairs
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer
from tiny_models import tiny_model

COEFFICIENT = 3.0


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> str:
    return tiny_model(
        tmp_path_factory.mktemp("model") / "mixtral", "mixtral", num_local_experts=4, output_router_logits=True,
        router_aux_loss_coef=COEFFICIENT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows(tokenizer):
    return format_pairs(DatasetDict(train=Dataset.from_list(make_pairs(40))), tokenizer, DataArguments())["train"]


def train(mixtral, rows, tokenizer, folder, asked=True, **settings):
    args = SimPOConfig(
        output_dir=str(folder), max_length=96, max_prompt_length=48, max_steps=4, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, use_cpu=True, report_to="none", learning_rate=0.01, save_strategy="no",
        logging_steps=1, disable_tqdm=True, optim="sgd", max_grad_norm=0.0, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(mixtral, output_router_logits=asked, dtype=torch.float32)
    trainer = SimPOTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


def test_it_is_in_the_loss_on_both_paths(mixtral, rows, tokenizer, tmp_path):
    fast = train(mixtral, rows, tokenizer, tmp_path)
    plain = train(mixtral, rows, tokenizer, tmp_path, fused_logps=False)
    unasked = train(mixtral, rows, tokenizer, tmp_path, asked=False)
    logs = [trainer.state.log_history[:-1] for trainer in (fast, plain, unasked)]
    for one, other in zip(*logs[:2], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
        assert 2 <= one["aux_loss"] < 4  # experts per token where all are used alike, and at most their number
    first, without = logs[0][0], logs[2][0]
    assert first["loss"] == pytest.approx(without["loss"] + COEFFICIENT * first["aux_loss"], rel=1e-5)
    assert "aux_loss" not in without
    assert logs[0][-1]["aux_loss"] < first["aux_loss"]
    metrics = fast.evaluate()
    assert metrics["eval_loss"] > COEFFICIENT * metrics["eval_aux_loss"] > 2 * COEFFICIENT


def test_refused_where_it_has_no_effect(mixtral, rows, tokenizer, tmp_path):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UserError, match="gradient_checkpointing_kwargs: under use_reentrant: true"):
        train(mixtral, rows, tokenizer, tmp_path, **reentrant)
    reentrant["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    trained = train(mixtral, rows, tokenizer, tmp_path, **reentrant).state.log_history
    assert trained[3]["aux_loss"] < trained[0]["aux_loss"]
