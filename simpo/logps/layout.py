"""How the 2B sequences of a batch lie in the rows of one forward pass: padded, sharing prompts, or in a single row."""

from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from simpo.logps.attention import Span

# These take masks per layer type; the others one mask.
MASKS_BY_LAYER_TYPE = {"gemma2", "qwen2", "qwen3"}


class Layout(NamedTuple):
    """2B sequences of at most T tokens in R rows of W."""

    input_ids: torch.Tensor
    """(R, W) int64."""
    position_ids: torch.Tensor
    """(R, W) int64: each token's place in its own sequence."""
    places: torch.Tensor
    """(2B, T) int64: where the tokens are, as positions in the flattened rows; 0 for padding."""
    rows: torch.Tensor
    """(R, W) int64: the pair or sequence that a token belongs to, -1 for padding."""
    branches: torch.Tensor
    """(R, W) int64: 0 for tokens that all of the row may see, 1 for the chosen response's, 2 for the rejected one's."""
    spans: list[list[Span]]
    """The same for each row in lengths: the pairs or sequences that follow each other in it."""


def shared_lengths(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, label_pad_token_id: int
) -> torch.Tensor:
    """(B,) int64: how many tokens at the start the two sequences of each pair share, none of which is a label."""
    is_prompt = attention_mask.bool() & (labels == label_pad_token_id)
    (chosen, rejected), (chosen_prompt, rejected_prompt) = input_ids.chunk(2), is_prompt.chunk(2)
    return ((chosen == rejected) & chosen_prompt & rejected_prompt).long().cumprod(dim=1).sum(dim=1)


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
    branch = torch.zeros_like(input_ids)
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
        branch = own * (1 + is_rejected.long())
    if padding_free:
        starts, shape = row_lengths.cumsum(0) - row_lengths, (1, int(row_lengths.sum()))
    else:
        shape = (len(row_lengths), int(row_lengths.max()))
        starts = torch.arange(shape[0], device=device) * shape[1]
    real = attention_mask.bool()
    places = (starts[row].unsqueeze(1) + column) * real

    def spread(values: torch.Tensor, padding: int) -> torch.Tensor:
        flat = torch.full((shape[0] * shape[1],), padding, dtype=values.dtype, device=device)
        flat[places[real]] = values.expand(count, width)[real]  # shared tokens twice, with the same value
        return flat.view(shape)

    return Layout(
        input_ids=spread(input_ids, 0),
        position_ids=spread(steps, 0),
        places=places,
        rows=spread(row.unsqueeze(1), -1),
        branches=spread(branch, 0),
        spans=[list(map(tuple, some.tolist())) for some in (spans.unsqueeze(0) if padding_free else spans.split(1))],
    )


def visible(layout: Layout, window: int | None = None) -> torch.Tensor:
    """(R, 1, W, W) bool: whether the token of the second last dimension may look at that of the last.

    It may look back, in its own row, at tokens that are shared or in its own branch; with a sliding window, less than
    `window` places of its sequence. (Padding looks at padding, so that no softmax is over nothing.)
    """
    rows, branches, positions = layout.rows, layout.branches, layout.position_ids
    seen = rows.unsqueeze(2) == rows.unsqueeze(1)
    seen &= (branches.unsqueeze(1) == 0) | (branches.unsqueeze(2) == branches.unsqueeze(1))
    seen &= torch.ones(seen.shape[1:], dtype=torch.bool, device=rows.device).tril()
    if window is not None:
        seen &= (positions.unsqueeze(2) - positions.unsqueeze(1)) < window
    return seen.unsqueeze(1)


def attention_by_span(config: PretrainedConfig, longest: int) -> bool:
    """Whether a model attends by the rows' spans (`branched_sdpa`) to sequences of up to `longest` tokens."""
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation == "sdpa" and (window is None or window >= longest)


def attention_inputs(layout: Layout, config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What tells a model's forward who sees whom in the layout's rows.

    sdpa attention takes the rows' spans, or a bool mask where a sliding window is shorter than the sequences; eager
    attention a mask that is added to the scores (in `dtype`). flash_attention_2 takes none: it finds the sequences of a
    padding-free row from their position ids.
    """
    attention, window = config._attn_implementation, getattr(config, "sliding_window", None)
    if attention == "flash_attention_2":
        return {"attention_mask": None}
    by_span = attention_by_span(config, int(layout.position_ids.max()) + 1)

    def mask(window: int | None) -> torch.Tensor:
        if by_span:  # of no meaning, but models build a mask where there is none
            return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout.rows.device)
        seen = visible(layout, window)
        if attention == "sdpa":
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    if config.model_type in MASKS_BY_LAYER_TYPE:
        kinds = set(config.layer_types)
        masks: Any = {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    else:
        masks = mask(window)
    return {"attention_mask": masks, **({"row_spans": layout.spans} if by_span else {})}
