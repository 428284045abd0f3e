"""Rows of [prompt | response | response ...], and what every way to attend within them has in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import nn

Span = tuple[int, ...]
"""Tokens of a prompt and of the responses (in training two) that follow it in a row; any may be 0."""


class Piece(NamedTuple):
    """Tokens that follow each other, and the prompt that they see before themselves."""

    row: int
    start: int
    """Place in the row, as is the prompt's."""
    length: int
    prompt: int
    before: int
    """Tokens of that prompt: 0 for a prompt, and for a response without one."""


def seen_before(span: Span) -> list[tuple[int, int]]:
    """Of each length in a span itself, and how many tokens of the prompt its own see: a prompt's none before itself."""
    prompt, *responses = span
    return [(prompt, 0), *((response, prompt) for response in responses)]


@dataclass(eq=False)
class Rows:
    """How the rows of one forward pass are made up."""

    spans: list[list[Span]]
    """Of each row; what is left of it is padding."""
    width: int
    device: torch.device

    @cached_property
    def pieces(self) -> list[Piece]:
        """In the order of the rows, without those that are empty."""
        found = []
        for row, spans in enumerate(self.spans):
            start = 0
            for span in spans:
                first = start
                for length, before in seen_before(span):
                    if length:
                        found.append(Piece(row, start, length, first, before))
                    start += length
        return found


class Branches(ABC):
    """How the layers of one kind attend within a batch's rows: made once for a forward pass and handed to each of them
    as its mask. (No tuple or dataclass: DeepSpeed and FSDP take those apart.)

    A prompt's tokens see their prompt up to themselves, a response's the whole prompt and the response up to
    themselves; of all this no more than the last `window`, themselves included.
    """

    how: ClassVar[str]
    """In words, for the summary."""

    @abstractmethod
    def __init__(self, rows: Rows, window: int | None, own: str):
        """
        Args:
            own: the attention implementation that the model was loaded with.
        """

    @abstractmethod
    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """
        Args:
            module: the layer's attention.
            query: (R, heads, W, d); key, value: (R, key heads, W, d).
            kwargs: what transformers' attention functions take (scaling, dropout, softcap, s_aux).

        Returns:
            (R, W, heads, d); anything finite for padding.
        """
