"""Attention piece by piece: for sdpa, and for a model's own eager function.

With a mask a kernel computes all pairs of tokens of a row, and the mask holds as many entries. In pieces, the prompt
looks at itself and each response at the prompt and itself, all of it causal, for which kernels need no mask; only a
sliding window that is shorter than what a piece looks at needs one, of the piece's size.
"""

import inspect
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from simpo.logps.branches import Branches, Rows, Span, seen_before


class Pieces(Branches):
    how = "in pieces"

    def __init__(self, rows: Rows, window: int | None, own: str):
        self.spans, self.piece = rows.spans, {"sdpa": sdpa_piece, "eager": eager_piece}[own]

        def mask(length: int, before: int) -> torch.Tensor | None:
            if window is None or before + length <= window:
                return None
            seen = torch.ones(length, before + length, dtype=torch.bool, device=rows.device)
            return seen.tril_(before).triu_(before - window + 1)

        self.masks = [
            [mask(length, before) for span in spans for length, before in seen_before(span)] for spans in rows.spans
        ]
        """For each length in the spans (length, tokens seen) bool; None where it is causal, the last seeing all."""

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        rows = zip(query.split(1), key.split(1), value.split(1), self.spans, self.masks, strict=True)
        return torch.cat([self._row(module, *row, **kwargs) for row in rows])

    def _row(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: list[Span],
        masks: list[torch.Tensor | None],
        **kwargs,
    ) -> torch.Tensor:
        lengths = [length for span in spans for length in span]
        padding = query.shape[2] - sum(lengths)
        queries, keys, values = (part.split([*lengths, padding], dim=2) for part in (query, key, value))
        firsts = accumulate(map(len, spans), initial=0)
        prompts = [first for first, span in zip(firsts, spans, strict=False) for _ in span]
        found = []
        for i, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
            if not length:
                continue
            k, v = keys[i], values[i]
            if i != prompt and lengths[prompt]:
                k, v = torch.cat([keys[prompt], k], dim=2), torch.cat([values[prompt], v], dim=2)
            found.append(self.piece(module, queries[i], k, v, masks[i], **kwargs))
        found.append(torch.zeros_like(queries[-1].transpose(1, 2)))
        return torch.cat(found, dim=1)


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
