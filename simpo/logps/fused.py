"""The fast path: `plain_logps`'s results without the logits, with shared prompts and without padding.

A model's head computes logits for every token and the whole vocabulary, which no objective here needs. For the length
of a forward pass its `forward` is replaced by one that returns the log-probability of each label token, computed in
chunks and computed again in the backward pass. The model, its wrappers and their hooks run as they always do.
"""

import os
from contextlib import ExitStack
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from simpo.console import UserError
from simpo.logps.attention import attending_by_spans, attention_name, branches_of
from simpo.logps.branches import Rows
from simpo.logps.families import FAMILIES, logit_shape, replaced_head
from simpo.logps.head import HeadLogps, mean_logits
from simpo.logps.layout import lay_out
from simpo.logps.plain import ResponseLogps, row_sums

# Logits in memory at a time: enough rows for matrix products to run at full speed.
CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
# Bytes that may be kept between a head's forward and backward pass, and which part of the free memory at most.
KEPT_BYTES, KEPT_SHARE = {"cpu": 2**30, "cuda": 2**32}, 0.25


class FastPath(NamedTuple):
    """What of the fast path a model can use."""

    fused: bool
    """Log-probabilities without the logits."""
    shared_prompt: bool
    padding_free: bool
    reason: str = ""
    """Why not fused."""

    def __str__(self) -> str:
        if not self.fused:
            return f"plain ({self.reason})" if self.reason else "plain"
        parts = [("without logits", True), ("shared prompts", self.shared_prompt), ("no padding", self.padding_free)]
        return ", ".join(name for name, used in parts if used)


def choose_path(model: PreTrainedModel, args: Any) -> FastPath:
    """The fastest exact path for a model that `args` (a PreferenceConfig) allows.

    Raises:
        UserError: a part is asked for that the model or its attention cannot do.
    """
    model = base_model(model)
    config, head = model.config, model.get_output_embeddings()
    reason = ""
    if config.model_type not in FAMILIES:
        reason = f"{config.model_type} models are not known to the fast path"
    elif own_class(head) is not nn.Linear:
        reason = f"the head is a {type(head).__module__}.{type(head).__name__}"
    elif getattr(config, "use_bidirectional_attention", False):
        reason = "use_bidirectional_attention: the model looks ahead"
    if args.fused_logps and reason:
        raise UserError(f"fused_logps: not for this model: {reason}")
    if reason or args.fused_logps is False:
        return FastPath(False, False, False, reason)
    attention = attention_name(config)
    # (code of its own need not look its attention up)
    by_spans = branches_of(attention) is not None and model._can_set_attn_implementation()
    if not by_spans and (args.shared_prompt or args.padding_free):
        raise UserError(f"shared_prompt, padding_free: not with {attention} attention")
    shared_prompt, padding_free = (
        by_spans if asked is None else asked for asked in (args.shared_prompt, args.padding_free)
    )
    return FastPath(True, shared_prompt, padding_free)


def own_class(module: nn.Module) -> type[nn.Module]:
    """A module's class; where FSDP2 has put one of its own before it, the one it had."""
    return type(module).__bases__[-1] if isinstance(module, FSDPModule) else type(module)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside an adapter wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def free_for_logits(device: torch.device) -> int:
    """Bytes that a process can spare for what saves its head a matrix product."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return int(min(KEPT_SHARE * free, KEPT_BYTES.get(device.type, 0)))


def fast_logps(
    model: nn.Module,
    core: PreTrainedModel,
    path: FastPath,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    label_pad_token_id: int = -100,
    with_weights: bool = False,
    chunk_logits: int | None = None,
    logits_memory: float | None = 0.0,
) -> ResponseLogps:
    """The same as `plain_logps`, by another way.

    Args:
        model: what to call: the model in whatever wraps it (DeepSpeed, FSDP, DDP, adapters).
        core: the model itself.
        input_ids, attention_mask, labels: (2B, T) int64, the chosen ones first, padded on the right.
        chunk_logits: logits in memory at a time.
        logits_memory: GB that may be kept for a trained head's backward pass; None: by device and free memory.
    """
    core = base_model(core)
    head, shape = core.get_output_embeddings(), logit_shape(core)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    places = torch.arange(input_ids.numel(), device=input_ids.device).view(input_ids.shape)
    wanted, real = labels[:, 1:] != label_pad_token_id, attention_mask.bool()
    kept = free_for_logits(input_ids.device) if logits_memory is None else int(logits_memory * 1e9)
    found: dict[str, torch.Tensor] = {}

    def in_place_of_the_head(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        sources, targets = places[:, :-1][wanted], labels[:, 1:][wanted]
        rows = max(1, (chunk_logits or CHUNK_LOGITS.get(flat.device.type, 2**27)) // head.weight.shape[0])
        logps, found["log_sum_squares"] = HeadLogps.apply(
            flat[sources], head.weight, head.bias, targets, shape, rows, with_weights, kept
        )
        found["mean_logits"] = mean_logits(flat.detach(), places[real], head, shape, rows)
        return logps.view(1, -1, 1)

    with ExitStack() as stack:
        stack.enter_context(replaced_head(core, in_place_of_the_head))
        if path.shared_prompt or path.padding_free:
            layout = lay_out(
                input_ids, attention_mask, labels, label_pad_token_id, path.shared_prompt, path.padding_free
            )
            places = layout.places
            inputs = {
                "input_ids": layout.input_ids,
                "position_ids": layout.position_ids,
                "attention_mask": layout.counts,
            }
            rows = Rows(layout.spans, width=layout.input_ids.shape[1], device=input_ids.device)
            stack.enter_context(attending_by_spans(core, rows))
        outputs = model(**inputs, use_cache=False)
    logps, lengths = outputs.logits.flatten(), wanted.sum(dim=1)
    return ResponseLogps(
        sums=row_sums(logps, wanted),
        lengths=lengths,
        mean_logits=row_sums(found["mean_logits"], real) / real.sum(dim=1),
        log_weights=row_sums(logps.detach() - found["log_sum_squares"], wanted) / lengths if with_weights else None,
        router_loss=outputs.get("aux_loss"),
    )
