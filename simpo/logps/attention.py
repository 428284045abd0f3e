"""Scaled dot-product attention over rows of [prompt | chosen | rejected], piece by piece.

With a mask a kernel computes all pairs of tokens of a row, and the mask holds as many entries. In pieces, the prompt
looks at itself and each response at the prompt and itself, all of it causal, for which kernels need no mask.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Span = tuple[int, int, int]
"""Tokens of a prompt and of the two responses that follow it in a row; any may be 0."""


def branched_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_spans: list[list[Span]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa attention, which also takes `row_spans` in place of a mask.

    Args:
        query: (R, heads, W, d); key, value: (R, key heads, W, d).
        row_spans: of each row; what is left of it is padding.

    Returns:
        (R, W, heads, d), and no attention weights.
    """
    if row_spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # causal_lower_right wants one dtype before autocast gives it
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    rows = zip(query.split(1), key.split(1), value.split(1), row_spans, strict=True)
    return torch.cat([row_attention(module, *row, **kwargs) for row in rows]), None


def row_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: list[Span],
    **kwargs: Any,
) -> torch.Tensor:
    lengths = [length for span in spans for length in span]
    padding = query.shape[2] - sum(lengths)
    queries, keys, values = (part.split([*lengths, padding], dim=2) for part in (query, key, value))
    found = []
    for i, length in enumerate(lengths):
        if not length:
            continue
        k, v, mask, prompt = keys[i], values[i], None, i - i % 3
        if i != prompt and lengths[prompt]:
            k, v = torch.cat([keys[prompt], k], dim=2), torch.cat([values[prompt], v], dim=2)
            mask = causal_lower_right(length, lengths[prompt] + length)
        found.append(sdpa_attention_forward(module, queries[i], k, v, mask, **kwargs)[0])
    found.append(torch.zeros_like(queries[-1].transpose(1, 2)))
    return torch.cat(found, dim=1)


AttentionInterface.register("sdpa", branched_sdpa)
