"""Units of many prompts in batches of similar length, which is where the speed comes from."""

import math
from collections.abc import Callable, Iterator, Sequence
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


def score_batches(
    encode: Callable[[Unit], Encoded],
    values: Callable[[Sequence[dict[str, list[int]]]], list[float]],
    units: Sequence[Unit],
    batch_tokens: int,
    is_done: Callable[[Unit], bool],
) -> Iterator[list[tuple[Unit, Outcome]]]:
    """Yield the outcomes of one batch after the other; first of all, of the units that cannot be encoded.

    The batches are those of all the units, less the ones that are done: a continued run computes every value in the
    same batch as an uninterrupted one, and so to the same last bit.

    Args:
        encode: raises CannotScore for a unit that the model does not take.
        values: runs the model on one batch.
    """
    units = list(dict.fromkeys(units))
    if all(map(is_done, units)):
        return
    encoded: dict[Unit, Encoded] = {}
    refused = []
    for unit in units:
        try:
            encoded[unit] = encode(unit)
        except CannotScore as error:
            refused.append((unit, Outcome(None, str(error))))
    if refused := [(unit, outcome) for unit, outcome in refused if not is_done(unit)]:
        yield refused
    units = list(encoded)
    for batch in make_batches([encoded[unit].length for unit in units], batch_tokens):
        if rest := [units[i] for i in batch if not is_done(units[i])]:
            found = run(values, [encoded[unit].inputs for unit in rest])
            yield [(unit, outcome_of(value, encoded[unit])) for unit, value in zip(rest, found, strict=True)]


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
