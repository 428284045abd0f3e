"""Micro-batches by tokens (`max_tokens_per_micro_batch`): an optimizer step's pairs in fewer, fuller passes.

The Trainer hands over a step's batches one by one. Here they wait for the last one, in whose turn all pairs are run,
dealt out anew: as many to a pass as the tokens allow, the same number of passes on every process. Which pairs make up a
step, and what each weighs in its loss and metrics, stays as it was: 1 / (pairs of its batch x batches of the step).
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from accelerate import DistributedType
from datasets import Dataset

from simpo.console import UserError
from simpo.data.tokenize import PreferenceCollator
from simpo.logps.checked import CheckedLogps
from simpo.logps.fused import FastPath
from simpo.logps.layout import row_lengths
from simpo.train.stored_metrics import StoredMetrics

Batch = dict[str, torch.Tensor]
KEY = "max_tokens_per_micro_batch"


class TokenBatches(StoredMetrics):
    """Mixin; without `args.max_tokens_per_micro_batch` it changes nothing."""

    log_probs: CheckedLogps
    stack_pairs: PreferenceCollator
    _waiting: Sequence[Batch] = ()  # the batches of a step that is not complete

    def training_step(self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """A batch's part of the step's loss; by tokens, 0 for all but the last batch, and all of it there."""
        if self.args.max_tokens_per_micro_batch is None:
            return super().training_step(model, inputs, num_items_in_batch)
        batches = [*self._waiting, inputs]
        if not self.accelerator.sync_gradients:
            self._waiting = batches
            return torch.zeros((), device=self.args.device)
        self._waiting = ()
        pairs = self._prepare_inputs(joined(batches, self.stack_pairs))
        sizes = [len(batch["input_ids"]) for batch in batches for _ in batch["input_ids"]]
        groups = self._groups(model, pairs, sizes)
        weights = [sum(1 / sizes[pair] for pair in group) for group in groups]
        loss = torch.zeros((), device=self.args.device)
        for group, weight in zip(groups, weights, strict=True):
            is_last = group is groups[-1]
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            alone = not is_last and self.accelerator.distributed_type != DistributedType.DEEPSPEED
            with self.accelerator.no_sync(model) if alone else nullcontext():
                # the divisor of what `compute_loss` returns, the mean over a group
                self.current_gradient_accumulation_steps = len(batches) / weight if weight else math.inf
                loss += super().training_step(model, taken(pairs, group or [0]))
        for name, values in self._stored_metrics["train"].items():  # one value for every batch, as without grouping
            found = torch.stack(values[-len(groups) :])
            mean = found @ found.new_tensor(weights) / len(batches)
            values[-len(groups) :] = [found.min() if name.endswith("/min") else mean] * len(batches)
        return loss

    def _groups(self, model: torch.nn.Module, pairs: Batch, sizes: list[int]) -> list[list[int]]:
        """The step's pairs by micro-batch, as many of these as the process needs that needs most."""
        rows = {name: pairs[name].transpose(0, 1).flatten(0, 1) for name in ("input_ids", "attention_mask", "labels")}
        with self.compute_loss_context_manager():
            path = self.log_probs.path(model, rows)
        lengths = row_lengths(**rows, label_pad_token_id=self.args.label_pad_token_id, shared_prompt=path.shared_prompt)
        groups = group_pairs(lengths.tolist(), sizes, self.args.max_tokens_per_micro_batch, path.padding_free)
        needed = self.accelerator.gather(torch.tensor([len(groups)], device=self.args.device)).max()
        return split_up(groups, int(needed))


def joined(batches: list[Batch], stack: PreferenceCollator) -> Batch:
    """The pairs of several batches in one, each with `nll_length`: the mean length of its batch's chosen responses."""
    width = max(batch["input_ids"].shape[2] for batch in batches)
    fill = {"input_ids": stack.pad_token_id, "attention_mask": 0, "labels": stack.label_pad_token_id}
    pairs = {
        name: torch.cat([F.pad(batch[name], (0, width - batch[name].shape[2]), value=value) for batch in batches])
        for name, value in fill.items()
    }
    if "ref_logps" in batches[0]:
        pairs["ref_logps"] = torch.cat([batch["ref_logps"] for batch in batches])
    lengths = [(batch["labels"][:, 0, 1:] != stack.label_pad_token_id).sum(dim=1).float() for batch in batches]
    pairs["nll_length"] = torch.cat([of_batch.mean().expand_as(of_batch) for of_batch in lengths])
    return pairs


def taken(pairs: Batch, group: list[int]) -> Batch:
    """Some of the pairs, without the padding that only others need."""
    batch = {name: values[group] for name, values in pairs.items()}
    longest = int(batch["attention_mask"].sum(dim=2).max())
    return {name: values[..., :longest] if values.dim() == 3 else values for name, values in batch.items()}


def group_pairs(lengths: list[list[int]], sizes: list[int], tokens: int, padding_free: bool) -> list[list[int]]:
    """Deal pairs out, the longest first, each to the first group that has room for it.

    Args:
        lengths: of each pair's rows.
        sizes: of the batch that each pair came in, which say what it weighs; different ones stay apart.
        tokens: in a group at most, padding included; a pair that is longer makes a group alone.
        padding_free: there is no padding.
    """

    def count(group: list[int]) -> int:
        rows = [length for pair in group for length in lengths[pair]]
        return sum(rows) if padding_free else len(rows) * max(rows)

    groups: list[list[int]] = []
    for pair in sorted(range(len(lengths)), key=lambda pair: -count([pair])):
        for group in groups:
            if sizes[group[0]] == sizes[pair] and count([*group, pair]) <= tokens:
                group.append(pair)
                break
        else:
            groups.append([pair])
    return groups


def split_up(groups: list[list[int]], count: int) -> list[list[int]]:
    """Make more groups of the same pairs, halving the largest; empty ones where there are too few pairs."""
    groups = list(groups)
    while len(groups) < count:
        largest = max(range(len(groups)), key=lambda place: len(groups[place]))
        group = groups[largest]
        groups[largest : largest + 1] = [group[: (len(group) + 1) // 2], group[(len(group) + 1) // 2 :]]
    return groups


def pair_lengths(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of each pair's sequences and of its prompt, (pairs,) each: chosen, rejected, prompt."""
    chosen, rejected, prompt = (
        np.concatenate(
            [
                pc.list_value_length(table[f"{name}_input_ids"]).to_numpy()
                for table in dataset.with_format("arrow").iter(10_000)
            ]
        )
        for name in ("chosen", "rejected", "prompt")
    )
    return chosen, rejected, prompt


def tokens_of_pairs(dataset: Dataset, path: FastPath) -> np.ndarray:
    """(pairs,) tokens that each is run in, by itself."""
    chosen, rejected, prompt = pair_lengths(dataset)
    if path.shared_prompt:
        return chosen + rejected - prompt
    return chosen + rejected if path.padding_free else 2 * np.maximum(chosen, rejected)


def check_longest(dataset: Dataset, tokens: int, path: FastPath) -> None:
    """Refuse a limit that a pair alone is above.

    Args:
        dataset: of token ids.

    Raises:
        UserError: names the longest pair.
    """
    lengths = tokens_of_pairs(dataset, path)
    row = int(lengths.argmax())
    if lengths[row] > tokens:
        raise UserError(
            f"{KEY} ({tokens}): row {row} of the training data is a pair of {lengths[row]} tokens (log-probs: {path}); "
            f"set it to {lengths[row]} or more, or lower max_length"
        )
