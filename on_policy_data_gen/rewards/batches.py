"""Units of many prompts in batches of similar length, which is where the speed comes from."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size

from rewards.base import CannotScore, Outcome, Unit


class Encoded(NamedTuple):
    """A unit as the model takes it."""

    inputs: dict[str, list[int]]
    """`input_ids` and what the tokenizer gives beside them (token_type_ids, attention_mask), one number a token."""
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        return len(self.inputs["input_ids"])


def make_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped by length, longest first, so that rows x width stays within the budget (or is one row)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens at the start all sequences have in common."""
    first, last = min(sequences), max(sequences)  # whatever these two share, those between them do, too
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def make_shared_batches(
    prompts: Sequence[Hashable], sequences: Sequence[list[int]], batch_tokens: int
) -> list[list[int]]:
    """Positions in batches in which the sequences of one prompt follow each other. All tokens of such a batch, those
    that a prompt's sequences share counted once, are within the budget. Most tokens first; a prompt whose sequences do
    not fit stands in several batches. What is left alone comes after these, as by `make_batches`.
    """
    groups: dict[Hashable, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(position)
    parts: list[tuple[int, list[int]]] = []  # tokens, and whose
    for group in groups.values():
        shared, room = shared_length([sequences[position] for position in group]), -1
        for position in group:
            own = len(sequences[position]) - shared
            if own > room:
                room = batch_tokens - shared
                parts.append((shared, []))
            room -= own
            parts[-1] = (parts[-1][0] + own, [*parts[-1][1], position])
    batches: list[list[int]] = []
    room = 0
    for tokens, part in sorted(parts, key=lambda part: -part[0]):
        if len(part) == 1:
            continue
        if tokens > room:
            batches.append([])
            room = batch_tokens
        room -= tokens
        batches[-1] += part
    alone = [part[0] for _, part in parts if len(part) == 1]
    others = make_batches([len(sequences[position]) for position in alone], batch_tokens)
    return batches + [[alone[i] for i in batch] for batch in others]


def plan(
    encode: Callable[[Unit], Encoded],
    units: Sequence[Unit],
    batch_tokens: int,
    is_done: Callable[[Unit], bool],
    shared_prompt: bool = False,
) -> tuple[list[tuple[Unit, Outcome]], list[list[tuple[Unit, Encoded]]]]:
    """The outcomes of the units that cannot be encoded, and the others in batches.

    The batches are those of all the units, less the ones that are done: a continued run computes every value in the
    same batch as an uninterrupted one, and so to the same last bit.

    Args:
        encode: raises CannotScore for a unit that the model does not take.
        shared_prompt: the units of one prompt share it.
    """
    units = list(dict.fromkeys(units))
    if all(map(is_done, units)):
        return [], []
    encoded: dict[Unit, Encoded] = {}
    refused = []
    for unit in units:
        try:
            encoded[unit] = encode(unit)
        except CannotScore as error:
            if not is_done(unit):
                refused.append((unit, Outcome(None, str(error))))
    units = list(encoded)
    if shared_prompt:
        sequences = [encoded[unit].inputs["input_ids"] for unit in units]
        batches = make_shared_batches([unit[0] for unit in units], sequences, batch_tokens)
    else:
        batches = make_batches([encoded[unit].length for unit in units], batch_tokens)
    left = [[(units[i], encoded[units[i]]) for i in batch if not is_done(units[i])] for batch in batches]
    return refused, [batch for batch in left if batch]


def run(values: Callable[[Sequence[Any]], list[float]], inputs: Sequence[Any]) -> list[float | None]:
    """Run one batch; out of memory, its halves. None: there was no memory for this one alone."""
    try:
        return list(values(inputs))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
    torch.cuda.empty_cache()  # out here, where nothing holds what the error's traceback held
    if len(inputs) == 1:
        return [None]
    half = len(inputs) // 2
    return run(values, inputs[:half]) + run(values, inputs[half:])


def outcome_of(value: float | None, encoded: Encoded) -> Outcome:
    if value is None:
        return Outcome(None, f"there is not enough memory for its {encoded.length} tokens")
    if not math.isfinite(value):
        return Outcome(None, f"the score is {value}, not a finite number; try --torch_dtype float32")
    return Outcome(value, notes=encoded.notes)
