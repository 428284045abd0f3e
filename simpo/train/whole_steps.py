"""Optimizer steps of whole size only, as the original made them (`drop_partial_step`).

An epoch's micro-batches seldom divide into whole optimizer steps. Today's Trainer makes one more, smaller step of the
remainder at the end of each epoch. The original carried the remainder over into the next epoch, and dropped the last.
With M micro-batches an epoch and A a step, E epochs make E floor(M / A) steps, and step s (from 1) is made of
micro-batches (s - 1) A + 1 to s A of all epochs in a row.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import skip_first_batches
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from simpo.console import UserError

Batch = dict[str, torch.Tensor]


class WholeSteps(Trainer):
    """Mixin; without `args.drop_partial_step` it changes nothing."""

    _micro_batches: int  # of an epoch, on this process
    _carried: list[Batch]  # the micro-batches that the epoch before left over
    _epoch_iterator: Iterator[Batch]
    _resumed: str | None = None  # the checkpoint whose random state is to be loaded after the next draw

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple:
        values = super().set_initial_training_values(args, dataloader)
        if not args.drop_partial_step:
            return values
        *_, examples, samples, pairs_per_step, micro_batches, max_steps = values
        per_epoch = micro_batches // args.gradient_accumulation_steps
        if per_epoch == 0:
            raise UserError(
                f"drop_partial_step: an epoch has {micro_batches} micro-batches, fewer than the "
                f"{args.gradient_accumulation_steps} of a step (gradient_accumulation_steps)"
            )
        if args.max_steps <= 0:
            max_steps = math.ceil(args.num_train_epochs * per_epoch)
        self._micro_batches, self._carried = micro_batches, []
        return math.ceil(max_steps / per_epoch), per_epoch, examples, samples, pairs_per_step, micro_batches, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """(epoch, micro-batches of it that are done) of a resumed run."""
        start = super()._init_training_state(*args, **kwargs)
        if self.args.drop_partial_step and not self.args.ignore_data_skip:
            start = divmod(self.state.global_step * self.args.gradient_accumulation_steps, self._micro_batches)
        return start

    def _run_epoch(self, **call: Any) -> None:
        """One epoch: the steps that the carried micro-batches and its own make; the rest is carried on."""
        if not self.args.drop_partial_step:
            return super()._run_epoch(**call)
        epoch, checkpoint, done = call["epoch"], call["resume_from_checkpoint"], 0
        if checkpoint is not None and epoch == call["epochs_trained"]:
            done = call["steps_trained_in_current_epoch"]
            if done:  # the random state was saved after this epoch's order had been drawn
                call["train_dataloader"] = skip_first_batches(call["train_dataloader"], done)
                self._resumed = checkpoint
            else:
                self._load_rng_state(checkpoint)
        steps = (len(self._carried) + self._micro_batches - done) // self.args.gradient_accumulation_steps
        if steps:
            super()._run_epoch(
                **call
                | {
                    "num_update_steps_per_epoch": steps,
                    "steps_in_epoch": steps * self.args.gradient_accumulation_steps,
                    "resume_from_checkpoint": None,
                }
            )
        else:  # resumed between an epoch's last step and its end
            call["train_dataloader"].set_epoch(epoch)
            self._epoch_iterator = iter(call["train_dataloader"])
        if not self.control.should_training_stop:
            self._carried += self._epoch_iterator
            self._load_resumed_rng_state()

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device) -> tuple:
        if not self.args.drop_partial_step:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        self._epoch_iterator, carried, self._carried = epoch_iterator, self._carried, []
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches - len(carried), device)
        self._load_resumed_rng_state()
        return carried + samples, None

    def _load_resumed_rng_state(self) -> None:
        if self._resumed is not None:
            self._load_rng_state(self._resumed)
            self._resumed = None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.args.drop_partial_step:  # the Trainer counts from the epoch's first whole step
            done = self.state.global_step * self.args.gradient_accumulation_steps
            self.state.epoch = done / self._micro_batches
        super()._maybe_log_save_evaluate(*args, **kwargs)
