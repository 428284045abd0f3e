"""Attention by kernels for sequences of various lengths: flash attention 2, 3, ... and the hub's builds of them.

Two calls a layer, whatever the batch: prompts with themselves (and whole sequences, where nothing is shared), and
responses with their prompt and themselves; causal, the last token seeing all. Which tokens go into a call and where its
sequences begin is worked out once a batch, on the CPU: no layer waits for the device.
"""

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import nn
from transformers.integrations.flash_attention import get_target_dtype
from transformers.modeling_flash_attention_utils import _flash_attention_forward

from simpo.console import UserError
from simpo.logps.branches import Branches, Piece, Rows


class Call(NamedTuple):
    """Sequences that go to the kernel together."""

    queries: torch.Tensor
    """(N,) int64: the tokens that attend, as places in the flattened rows."""
    keys: torch.Tensor
    """(M,) int64: the tokens that they see, sequence by sequence."""
    limits: dict[str, torch.Tensor | int]
    """Where the sequences of both begin and end, (sequences + 1,) int32, and how long the longest are."""


class Calls(NamedTuple):
    calls: list[Call]
    order: torch.Tensor
    """(R * W,) int64: for each place of the flattened rows where it is in the calls' results, after which comes one
    more for padding."""


def lay_out_call(pieces: list[Piece], rows: Rows) -> Call:
    def places(ranges: list[tuple[int, int, int]]) -> torch.Tensor:
        found = [torch.arange(length) + row * rows.width + start for row, start, length in ranges]
        return torch.cat(found).to(rows.device)

    def limits(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(rows.device)

    attending, seen = [p.length for p in pieces], [p.before + p.length for p in pieces]
    return Call(
        places([(p.row, p.start, p.length) for p in pieces]),
        places([part for p in pieces for part in ((p.row, p.prompt, p.before), (p.row, p.start, p.length))]),
        {
            "cu_seq_lens_q": limits(attending),
            "cu_seq_lens_k": limits(seen),
            "max_length_q": max(attending),
            "max_length_k": max(seen),
        },
    )


@lru_cache(maxsize=1)  # layers with and without a window ask for the same
def lay_out_calls(rows: Rows) -> Calls:
    kinds = [[p for p in rows.pieces if not p.before], [p for p in rows.pieces if p.before]]
    calls = [lay_out_call(pieces, rows) for pieces in kinds if pieces]
    places = torch.cat([call.queries for call in calls])
    order = torch.full((len(rows.spans) * rows.width,), len(places), device=rows.device)
    order[places] = torch.arange(len(places), device=rows.device)
    return Calls(calls, order)


def check_kernel(own: str, device: torch.device) -> None:
    """Refuse a kernel that cannot be trained through: those made for inference leave gradients out without an error.

    Args:
        own: a flash attention that a model was made with, so that it is loaded.

    Raises:
        UserError: it has no backward pass, or does not run on this device.
    """
    inputs = [torch.ones(1, 4, 1, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3)]
    limits = lay_out_call([Piece(0, 0, 4, 0, 0)], Rows([[(4, 0, 0)]], 4, device)).limits
    try:
        answer = _flash_attention_forward(*inputs, None, 4, is_causal=True, attn_implementation=own, **limits)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"attn_implementation: {own} does not run here: {error}") from error
    trained = answer.requires_grad and torch.autograd.grad(answer.sum(), inputs, allow_unused=True)
    if not trained or any(gradient is None for gradient in trained):
        raise UserError(f"attn_implementation: {own} has no backward pass: it is for inference only")


class Varlen(Branches):
    how = "by variable lengths"

    def __init__(self, rows: Rows, window: int | None, own: str):
        self.window, self.own = window, own
        self.calls, self.order = lay_out_calls(rows)

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_,
    ) -> torch.Tensor:
        dtype = get_target_dtype(query, module)  # the kernels have no float32
        flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
        found = []
        for call in self.calls:
            places = (call.queries, call.keys, call.keys)
            q, k, v = (part.index_select(0, some).unsqueeze(0) for part, some in zip(flat, places, strict=True))
            answer = _flash_attention_forward(
                q,
                k,
                v,
                attention_mask=None,
                query_length=q.shape[1],
                is_causal=True,
                dropout=dropout,
                softmax_scale=scaling,
                sliding_window=self.window,
                softcap=softcap,
                s_aux=None if s_aux is None else s_aux.to(dtype or query.dtype),
                target_dtype=dtype,
                attn_implementation=self.own,
                **call.limits,
            )
            found.append(answer.squeeze(0))
        found.append(torch.zeros_like(found[0][:1]))
        return torch.cat(found).index_select(0, self.order).unflatten(0, (query.shape[0], -1))
