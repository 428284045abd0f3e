"""Attention over rows of [prompt | response | response ...], under names of its own.

A model asks the mask interface what each kind of its layers may see and hands the answer to the attention interface,
each found by the name in its config. Within `attending_by_spans` the answer is a `Branches`, which attends by itself;
outside (to generate, say) both do what they do under the model's own name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from simpo.logps.branches import Branches, Rows
from simpo.logps.flex import Flex
from simpo.logps.pieces import Pieces, eager_attention
from simpo.logps.varlen import Varlen

BRANCHED: dict[str, str] = {}
"""Attention implementations that have attended by spans, and the names under which they do."""

ROWS: ContextVar[Rows | None] = ContextVar("rows", default=None)


def branches_of(attention: str) -> type[Branches] | None:
    """How a model attends by spans that was loaded with this attention implementation; None where it cannot."""
    if is_flash_attention_requested(requested_attention_implementation=attention):
        return Varlen
    return {"sdpa": Pieces, "eager": Pieces, "flex_attention": Flex}.get(attention)


def attention_name(config: PretrainedConfig) -> str:
    """The attention implementation that a model was loaded with."""
    own = config._attn_implementation
    return next((name for name, branched in BRANCHED.items() if branched == own), own)


def branched_name(own: str) -> str:
    """The name under which an attention implementation attends by spans, registered when it is first asked for."""
    if own not in BRANCHED:
        # transformers would load a kernel for what has "flash" in it, or a slash
        name = "simpo_branched_" + own.replace("flash", "varlen").replace("/", "_")
        AttentionInterface.register(name, partial(branched_attention, own=own))
        AttentionMaskInterface.register(name, partial(branched_mask, own=own))
        BRANCHED[own] = name
    return BRANCHED[own]


@contextmanager
def attending_by_spans(model: PreTrainedModel, rows: Rows) -> Iterator[None]:
    """Let a forward pass attend by its rows' spans. From the first time on, the model's attention has its branched name
    (which no config on disk ever says): a backward pass may run forward passes again.

    Args:
        model: with an attention implementation that has `branches_of`.
    """
    name = branched_name(attention_name(model.config))
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise NotImplementedError(f"{type(model).__name__} does not let its attention be set, so not by spans")
    token = ROWS.set(rows)
    try:
        yield
    finally:
        ROWS.reset(token)


def branched_mask(*args: Any, own: str, device: torch.device, local_size: int | None = None, **kwargs: Any) -> Any:
    """What a kind of layers may see (`own`: by which mask interface, outside of `attending_by_spans`)."""
    rows = ROWS.get()
    if rows is None:
        if local_size is not None:
            kwargs["local_size"] = local_size
        return AttentionMaskInterface()[own](*args, device=device, **kwargs)
    if kwargs.get("use_vmap"):
        raise NotImplementedError("this model's attention is more than causal: it cannot attend by spans")
    return branches_of(own)(rows, local_size, own)


def branched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Branches | torch.Tensor | None,
    own: str,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by spans, or the model's own where it got an ordinary mask.

    Args:
        query: (R, heads, W, d); key, value: (R, key heads, W, d).

    Returns:
        (R, W, heads, d), and no attention weights.
    """
    if not isinstance(attention_mask, Branches):
        whole = AttentionInterface().get_interface(own, eager_attention)
        with called(module.config, own):
            return whole(module, query, key, value, attention_mask, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # kernels and causal_lower_right want one dtype before autocast gives it
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    return attention_mask.attend(module, query, key, value, **kwargs), None


@contextmanager
def called(config: PretrainedConfig, own: str) -> Iterator[None]:
    """Its own name for a while: flash attention takes from it which kernel to load."""
    branched = config._attn_implementation
    config._attn_implementation_internal = own
    try:
        yield
    finally:
        config._attn_implementation_internal = branched
