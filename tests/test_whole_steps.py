"""drop_partial_step: the steps that the original made where an epoch does not divide into whole ones."""

import copy

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from test_python_api import settings, text_rows
from transformers import AutoModelForCausalLM

from simpo.console import UserError
from simpo_trainer import SimPOTrainer
from tiny_models import tiny_tokenizer

ROWS = 24  # 12 micro-batches of 2: with 5 a step, two are over


@pytest.fixture(scope="module")
def rows():
    return text_rows(tiny_tokenizer(), ROWS)


class Recorded(SimPOTrainer):
    """Keeps the micro-batches of each optimizer step, by their first prompt ids."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = [[]]

    def training_step(self, model, inputs, *args, **kwargs):
        self.steps[-1].append(inputs["input_ids"].tolist())
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            self.steps.append([])
        return loss


def train(folder, rows, model_folder, resume=None, peft_config=None, **changes):
    values = {"max_steps": -1, "gradient_accumulation_steps": 5, "logging_steps": 1, "drop_partial_step": True}
    args = settings(folder, **(values | changes))
    trainer = Recorded(model_folder, args, None, rows, tokenizer=tiny_tokenizer(), peft_config=peft_config)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("epochs", "whole", "partial"), [(1, 2, 3), (4, 8, 12)])
def test_the_numbers_of_steps_that_were_recorded(rows, model_folder, tmp_path, epochs, whole, partial):
    assert train(tmp_path, rows, model_folder, num_train_epochs=epochs).state.global_step == whole
    trainer = train(tmp_path, rows, model_folder, num_train_epochs=epochs, drop_partial_step=False)
    assert trainer.state.global_step == partial


def test_steps_run_on_over_the_epochs_ends(rows, model_folder, tmp_path):
    trainer = train(tmp_path, rows, model_folder, num_train_epochs=4)
    assert [len(step) for step in trainer.steps] == [5] * 8 + [0]
    order = []
    loader = trainer.get_train_dataloader()
    for epoch in range(4):
        loader.set_epoch(epoch)
        order += [batch["input_ids"].tolist() for batch in loader]
    assert [batch for step in trainer.steps for batch in step] == order[:40]
    epochs = [entry["epoch"] for entry in trainer.state.log_history if "loss" in entry]
    assert epochs == pytest.approx([5 * step / 12 for step in range(1, 9)], abs=1e-4)


def test_the_weights_are_those_of_a_loop_written_out(rows, model_folder, tmp_path):
    """Each micro-batch's loss over 5, added up; one optimizer step after every fifth of all epochs' micro-batches."""
    trainer = train(tmp_path, rows, model_folder, num_train_epochs=2, lr_scheduler_type="constant", max_grad_norm=0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    scorer, loader = copy.copy(trainer), trainer.get_train_dataloader()
    batches = [batch for epoch in range(2) for batch in (loader.set_epoch(epoch), list(loader))[1]]
    for number, batch in enumerate(batches[:20], start=1):
        loss, _ = scorer.get_batch_loss_metrics(model, batch)
        (loss / 5).backward()
        if number % 5 == 0:
            optimizer.step()
            optimizer.zero_grad()
    trained = trainer.model.state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_ends_with_the_same_weights(rows, model_folder, tmp_path):
    """From inside an epoch, and from its last whole step, with dropout's random numbers."""
    lora = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear")
    changes = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "disable_dropout": False}
    whole = train(tmp_path / "whole", rows, model_folder, peft_config=lora, **changes)
    for step in (1, 2):
        start = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = train(tmp_path / f"from_{step}", rows, model_folder, start, peft_config=lora, **changes)
        assert resumed.state.global_step == whole.state.global_step == 4
        assert resumed.steps == whole.steps[step:]
        found, expected = (
            load_file(tmp_path / name / "checkpoint-4" / "adapter_model.safetensors")
            for name in (f"from_{step}", "whole")
        )
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_an_epoch_without_a_whole_step(rows, model_folder, tmp_path):
    with pytest.raises(UserError, match="an epoch has 12 micro-batches, fewer than the 16 of a step"):
        train(tmp_path, rows, model_folder, gradient_accumulation_steps=16)
