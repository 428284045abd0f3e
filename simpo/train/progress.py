"""What a training prints: one line for each log, of what the run has. All values are in trainer_state.json."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from simpo.console import say

# (name in the line, its names in the logs: the preference trainers', then TRL's; its form)
COLUMNS = (
    ("loss", ("loss",), "7.4f"),
    ("margin", ("rewards/margins", "margin"), "8.4f"),
    ("accuracy", ("rewards/accuracies", "accuracy"), "5.3f"),
    ("token accuracy", ("mean_token_accuracy",), "5.3f"),
    ("SFT loss", ("sft_loss",), "7.4f"),
    ("router loss", ("aux_loss",), "7.4f"),
    ("weight", ("weights/mean",), "5.3f"),
    ("rate", ("learning_rate",), ".2e"),
)


def described(logs: Mapping[str, float], prefix: str = "") -> str:
    """The columns that the logs have, "loss  1.3131   margin  -0.0084"."""
    return "   ".join(
        f"{name} {logs[prefix + key]:{form}}" for name, keys, form in COLUMNS for key in keys if prefix + key in logs
    )


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Lines(TrainerCallback):
    """Prints the logs of the training and of its evaluations."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.first_step, self.start = state.global_step, time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        step = f"{state.global_step:{len(str(state.max_steps))}}/{state.max_steps}"
        if "loss" in logs:
            each = (time.monotonic() - self.start) / max(1, state.global_step - self.first_step)
            left = duration(each * (state.max_steps - state.global_step))
            line = f"step {step}   {described(logs)}   left {left}"
        elif "eval_loss" in logs:
            line = f"eval {step}   {described(logs, 'eval_')}"
        else:
            return
        with tqdm.external_write_mode():  # above the bar
            say(line)


class Bar(ProgressCallback):
    """transformers' progress bar, without its way to print logs."""

    def on_log(self, *args: Any, **kwargs: Any) -> None: ...


def print_lines(trainer: Trainer) -> None:
    """Have the trainer print `Lines` in place of dictionaries, and show its progress bar on a terminal only."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Lines())
    if sys.stderr.isatty() and not trainer.args.disable_tqdm:
        trainer.add_callback(Bar())
