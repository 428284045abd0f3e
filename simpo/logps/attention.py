"""Attention over rows of [prompt | chosen | rejected], piece by piece, under names of its own.

With a mask a kernel computes all pairs of tokens of a row, and the mask holds as many entries. In pieces, the prompt
looks at itself and each response at the prompt and itself, all of it causal, for which kernels need no mask; only a
sliding window that is shorter than what a piece looks at needs one, of the piece's size.

A model asks the mask interface what each kind of its layers may see and hands the answer to the attention interface,
each found by the name in its config. Within `attending_by_spans` the answer is `Pieces`; outside (to generate, say)
both do what they do under the model's own name.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Span = tuple[int, int, int]
"""Tokens of a prompt and of the two responses that follow it in a row; any may be 0."""

BRANCHED = {"sdpa": "simpo_branched", "eager": "simpo_branched_eager"}
"""Attention implementations that can attend by spans, and the names under which they do."""

ROW_SPANS: ContextVar[list[list[Span]] | None] = ContextVar("row_spans", default=None)


@dataclass(frozen=True)
class Pieces:
    """What one kind of layers sees. (No tuple: DeepSpeed and FSDP take those apart.)"""

    spans: list[list[Span]]
    """Of each row; what is left of it is padding."""
    masks: list[list[torch.Tensor | None]]
    """For each length in them (length, tokens seen) bool; None where it is causal, the last seeing all."""


def attention_name(config: PretrainedConfig) -> str:
    """The attention implementation that a model was loaded with."""
    own = config._attn_implementation
    return next((name for name, branched in BRANCHED.items() if branched == own), own)


@contextmanager
def attending_by_spans(model: PreTrainedModel, spans: list[list[Span]]) -> Iterator[None]:
    """Let a forward pass attend by its rows' spans. From the first time on, the model's attention is called
    `BRANCHED[...]` (which no config on disk ever says): a backward pass may run forward passes again.

    Args:
        model: with an attention implementation that is in BRANCHED.
    """
    if model.config._attn_implementation in BRANCHED:
        model.set_attn_implementation(BRANCHED[model.config._attn_implementation])
    if model.config._attn_implementation not in BRANCHED.values():
        raise NotImplementedError(f"{type(model).__name__} does not let its attention be set, so not by spans")
    token = ROW_SPANS.set(spans)
    try:
        yield
    finally:
        ROW_SPANS.reset(token)


def branched_mask(*args: Any, own: str, device: torch.device, local_size: int | None = None, **kwargs: Any) -> Any:
    """What a kind of layers may see (`own`: by which mask interface, outside of `attending_by_spans`)."""
    spans = ROW_SPANS.get()
    if spans is None:
        if local_size is not None:
            kwargs["local_size"] = local_size
        return AttentionMaskInterface()[own](*args, device=device, **kwargs)
    if kwargs.get("use_vmap"):
        raise NotImplementedError("this model's attention is more than causal: it cannot attend by spans")

    def mask(length: int, before: int) -> torch.Tensor | None:
        if local_size is None or before + length <= local_size:
            return None
        seen = torch.ones(length, before + length, dtype=torch.bool, device=device)
        return seen.tril_(before).triu_(before - local_size + 1)

    def masks(prompt: int, chosen: int, rejected: int) -> list[torch.Tensor | None]:
        return [mask(prompt, 0), mask(chosen, prompt), mask(rejected, prompt)]

    return Pieces(spans, [[one for span in row for one in masks(*span)] for row in spans])


def sdpa_piece(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs
) -> torch.Tensor:
    """transformers' own, whatever another library may have registered as sdpa: that need not take such masks."""
    if mask is None and query.shape[2] < key.shape[2]:
        mask = causal_lower_right(query.shape[2], key.shape[2])
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


def eager_piece(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs
) -> torch.Tensor:
    """The model's own, with whatever it does to the scores (soft-caps, sinks)."""
    length, seen = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril_(seen - length)
    added = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return eager_attention(module, query, key, value, added.view(1, 1, length, seen), **kwargs)[0]


def eager_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The function that this module's forward calls under the name eager, which no interface knows."""
    return inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"](module, *args, **kwargs)


def branched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Pieces | torch.Tensor | None,
    piece: Callable[..., torch.Tensor],
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by spans, or the model's own where it got an ordinary mask.

    Args:
        query: (R, heads, W, d); key, value: (R, key heads, W, d).

    Returns:
        (R, W, heads, d), and no attention weights.
    """
    if not isinstance(attention_mask, Pieces):
        whole = AttentionInterface()["sdpa"] if piece is sdpa_piece else eager_attention
        return whole(module, query, key, value, attention_mask, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # causal_lower_right wants one dtype before autocast gives it
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    rows = zip(query.split(1), key.split(1), value.split(1), attention_mask.spans, attention_mask.masks, strict=True)
    return torch.cat([row_attention(module, *row, piece, **kwargs) for row in rows]), None


def row_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: list[Span],
    masks: list[torch.Tensor | None],
    piece: Callable[..., torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    lengths = [length for span in spans for length in span]
    padding = query.shape[2] - sum(lengths)
    queries, keys, values = (part.split([*lengths, padding], dim=2) for part in (query, key, value))
    found = []
    for i, length in enumerate(lengths):
        if not length:
            continue
        k, v, prompt = keys[i], values[i], i - i % 3
        if i != prompt and lengths[prompt]:
            k, v = torch.cat([keys[prompt], k], dim=2), torch.cat([values[prompt], v], dim=2)
        found.append(piece(module, queries[i], k, v, masks[i], **kwargs))
    found.append(torch.zeros_like(queries[-1].transpose(1, 2)))
    return torch.cat(found, dim=1)


for _own, _piece in (("sdpa", sdpa_piece), ("eager", eager_piece)):
    AttentionInterface.register(BRANCHED[_own], partial(branched_attention, piece=_piece))
    AttentionMaskInterface.register(BRANCHED[_own], partial(branched_mask, own=_own))
