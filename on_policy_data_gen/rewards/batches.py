"""Units of many prompts in batches of similar length, which is where the speed comes from."""

import math
from collections.abc import Callable, Sequence
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


def plan(
    encode: Callable[[Unit], Encoded],
    units: Sequence[Unit],
    batch_tokens: int,
    is_done: Callable[[Unit], bool],
) -> tuple[list[tuple[Unit, Outcome]], list[list[tuple[Unit, Encoded]]]]:
    """The outcomes of the units that cannot be encoded, and the others in batches.

    The batches are those of all the units, less the ones that are done: a continued run computes every value in the
    same batch as an uninterrupted one, and so to the same last bit.

    Args:
        encode: raises CannotScore for a unit that the model does not take.
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
