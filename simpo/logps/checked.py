"""Log-probabilities by the fastest exact path for a model, which is tried on a few tokens before it is trusted."""

from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from simpo.console import UserError, warn
from simpo.logps.fused import FastPath, base_model, choose_path, fast_logps
from simpo.logps.plain import ResponseLogps, plain_logps

TOKENS = 64
"""Tried before and after the start of the first pair's responses."""


class CheckedLogps:
    """The log-probabilities of a run's models, each by its own path.

    Args:
        args: a PreferenceConfig, which can ask for paths or rule them out (see `choose_path`).
    """

    def __init__(self, args: Any, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.cores: WeakKeyDictionary[nn.Module, ReferenceType[PreTrainedModel]] = WeakKeyDictionary()
        self.paths: WeakKeyDictionary[nn.Module, FastPath] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, batch: dict[str, torch.Tensor], with_weights: bool = False) -> ResponseLogps:
        """Those of 2B responses, from one forward pass (and two short ones when a model is seen first).

        Args:
            model: in whatever the accelerator wrapped it.
            batch: input_ids, attention_mask, labels (2B, T) int64, the chosen ones first, padded on the right.

        Raises:
            UserError: `fused_logps` asks for a path that does not give this model's log-probabilities.
        """
        core, path, pad = self.core(model), self.path(model, batch), self.args.label_pad_token_id
        settings = {"label_pad_token_id": pad, "with_weights": with_weights}
        if path.fused:
            return fast_logps(model, core, path, **batch, **settings, logits_memory=self.args.logits_memory)
        return plain_logps(model, **batch, **settings)

    def core(self, model: nn.Module) -> PreTrainedModel:
        """What the accelerator wrapped. To ask it takes milliseconds each time: it reads packages' metadata."""
        if model not in self.cores:
            self.cores[model] = ref(self.accelerator.unwrap_model(model))
        return self.cores[model]()

    def path(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> FastPath:
        """The path for a model; arguments and errors as in a call."""
        core = self.core(model)
        if core not in self.paths:
            self.paths[core] = self._tried(model, core, batch)
        return self.paths[core]

    def _tried(self, model: nn.Module, core: PreTrainedModel, batch: dict[str, torch.Tensor]) -> FastPath:
        path = choose_path(core, self.args)
        if not path.fused:
            return path
        mixed = self.accelerator.mixed_precision != "no"  # inside the model's own call: not to be seen from here
        difference = largest_difference(model, core, path, batch, self.args.label_pad_token_id, mixed)
        if self.accelerator.gather(difference).max() <= 1:  # one answer for all processes
            return path
        reason = "it does not give this model's own log-probabilities (has its forward changed?)"
        if self.args.fused_logps:
            raise UserError(f"fused_logps: {reason}")
        warn(f"log-probs: by the plain path after all, as the fast one is wrong here: {reason}")
        return FastPath(False, False, False, reason)


def excerpt(batch: dict[str, torch.Tensor], label_pad_token_id: int) -> dict[str, torch.Tensor]:
    """The first pair of a batch of tensors (2B, T), around the place where its responses begin."""
    pair = {name: values[[0, len(values) // 2]] for name, values in batch.items()}
    start = int((pair["labels"] != label_pad_token_id).long().argmax(dim=1).min())
    return {name: values[:, max(0, start - TOKENS) : start + TOKENS] for name, values in pair.items()}


@torch.no_grad()
def largest_difference(
    model: nn.Module,
    core: PreTrainedModel,
    path: FastPath,
    batch: dict[str, torch.Tensor],
    label_pad_token_id: int,
    mixed: bool,
) -> torch.Tensor:
    """Scalar float32: the largest difference between the two paths, relative to what is allowed (above 1: too much).

    Compared are a pair's log-probabilities per token and mean logits, without dropout. Allowed are 0.001 in float32 on
    a CPU, else 0.1: about ten times the rounding of bf16, where a scale or soft-cap left out costs more than 1.

    Args:
        model, core, path: as `fast_logps` takes them. The model is run twice, whatever wraps it.
        batch: input_ids, attention_mask, labels (2B, T) int64, the chosen ones first.
        mixed: the model computes in 16 bits although its weights are float32.
    """
    batch, training = excerpt(batch, label_pad_token_id), core.training
    model.eval()
    plain = plain_logps(model, **batch, label_pad_token_id=label_pad_token_id)
    fast = fast_logps(model, core, path, **batch, label_pad_token_id=label_pad_token_id)
    model.train(training)
    per_token = (fast.sums - plain.sums).abs() / plain.lengths.clamp(min=1)
    logits = (fast.mean_logits - plain.mean_logits).abs() / (1 + plain.mean_logits.abs())
    exact = batch["input_ids"].device.type == "cpu" and not mixed
    exact &= all(p.dtype == torch.float32 for p in base_model(core).parameters())
    # no number is a difference too
    return torch.cat([per_token, logits]).nan_to_num(torch.inf).max() / (1e-3 if exact else 0.1)
