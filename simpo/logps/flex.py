"""Attention by FlexAttention: one compiled kernel that is told by a block mask which tokens see which."""

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers.integrations.flex_attention import flex_attention_forward

from simpo.logps.branches import Branches, Rows


class Flex(Branches):
    how = "by a block mask"

    def __init__(self, rows: Rows, window: int | None, own: str):
        shape, numbers = (len(rows.spans), rows.width), {}
        piece, prompt, place = (torch.full(shape, -1) for _ in range(3))  # -1: padding
        for number, some in enumerate(rows.pieces):
            tokens = (some.row, slice(some.start, some.start + some.length))
            piece[tokens], place[tokens] = number, torch.arange(some.length) + some.before
            numbers[some.row, some.start] = number
            prompt[tokens] = numbers[some.row, some.prompt] if some.before else number
        piece, prompt, place = (values.to(rows.device) for values in (piece, prompt, place))

        def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            seen = (piece[row, key] == piece[row, query]) | (piece[row, key] == prompt[row, query])
            seen = seen & (key <= query)  # not in place, which cannot be compiled
            return seen if window is None else seen & (place[row, query] - place[row, key] < window)

        # compiled, it does not write all pairs of tokens down first; on a CPU that takes longer than it saves
        compiled = rows.device.type != "cpu"
        self.mask = create_block_mask(
            sees, shape[0], None, rows.width, rows.width, device=rows.device, _compile=compiled
        )

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        return flex_attention_forward(module, query, key, value, self.mask, **kwargs)[0]
