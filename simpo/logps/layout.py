"""How the 2B sequences of a batch lie in the rows of one forward pass: padded, sharing prompts, or in a single row."""

from typing import NamedTuple

import torch

from simpo.logps.branches import Span


class Layout(NamedTuple):
    """2B sequences of at most T tokens in R rows of W."""

    input_ids: torch.Tensor
    """(R, W) int64."""
    position_ids: torch.Tensor
    """(R, W) int64: each token's place in its own sequence."""
    places: torch.Tensor
    """(2B, T) int64: where the tokens are, as positions in the flattened rows; 0 for padding."""
    counts: torch.Tensor
    """(R, W) int64: how many of the sequences a token stands for: 0 for padding, 2 for a shared prompt's. It serves as
    the attention mask, which is what mixtures of experts average over."""
    spans: list[list[Span]]
    """For each row the lengths of the pairs or sequences that follow each other in it."""


def shared_lengths(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, label_pad_token_id: int
) -> torch.Tensor:
    """(B,) int64: how many tokens at the start the two sequences of each pair share, none of which is a label."""
    is_prompt = attention_mask.bool() & (labels == label_pad_token_id)
    (chosen, rejected), (chosen_prompt, rejected_prompt) = input_ids.chunk(2), is_prompt.chunk(2)
    return ((chosen == rejected) & chosen_prompt & rejected_prompt).long().cumprod(dim=1).sum(dim=1)


def row_lengths(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    label_pad_token_id: int,
    shared_prompt: bool,
) -> torch.Tensor:
    """Tokens of each pair's rows, int64: (B, 1) where the two sequences share one, else (B, 2)."""
    lengths = attention_mask.sum(dim=1).view(2, -1).T
    if not shared_prompt:
        return lengths
    shared = shared_lengths(input_ids, attention_mask, labels, label_pad_token_id)
    return lengths.sum(dim=1, keepdim=True) - shared.unsqueeze(1)


def lay_out(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    label_pad_token_id: int,
    shared_prompt: bool,
    padding_free: bool,
) -> Layout:
    """Lay the sequences out.

    Args:
        input_ids, attention_mask, labels: (2B, T), the chosen ones first, padded on the right.
        shared_prompt: a row holds [prompt | chosen | rejected] of a pair (arXiv 2410.20305), else one sequence.
        padding_free: the rows follow each other in one.
    """
    device, (count, width) = input_ids.device, input_ids.shape
    lengths, steps = attention_mask.sum(dim=1), torch.arange(width, device=device)
    row = torch.arange(count, device=device)
    column = steps.expand(count, width)
    row_lengths, nothing = lengths, torch.zeros_like(lengths)
    spans = torch.stack([lengths, nothing, nothing], dim=1)
    if shared_prompt:
        shared = shared_lengths(input_ids, attention_mask, labels, label_pad_token_id)
        chosen_lengths, rejected_lengths = lengths.chunk(2)
        spans = torch.stack([shared, chosen_lengths - shared, rejected_lengths - shared], dim=1)
        row_lengths = spans.sum(dim=1)
        row = row % (count // 2)
        own = steps >= shared[row].unsqueeze(1)
        is_rejected = (torch.arange(count, device=device) >= count // 2).unsqueeze(1)
        column = column + own * is_rejected * (chosen_lengths - shared)[row].unsqueeze(1)
    if padding_free:
        starts, shape = row_lengths.cumsum(0) - row_lengths, (1, int(row_lengths.sum()))
    else:
        shape = (len(row_lengths), int(row_lengths.max()))
        starts = torch.arange(shape[0], device=device) * shape[1]
    real = attention_mask.bool()
    places = (starts[row].unsqueeze(1) + column) * real

    def spread(values: torch.Tensor) -> torch.Tensor:
        flat = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=device)
        flat[places[real]] = values.expand(count, width)[real]  # shared tokens twice, with the same value
        return flat.view(shape)

    return Layout(
        input_ids=spread(input_ids),
        position_ids=spread(steps),
        places=places,
        counts=places[real].bincount(minlength=shape[0] * shape[1]).view(shape),
        spans=[list(map(tuple, some.tolist())) for some in (spans.unsqueeze(0) if padding_free else spans.split(1))],
    )
