"""A reward model on several machines or GPUs: the driver makes the batches and keeps the values, workers compute them.

The batches are those of one process, so the values are the same to the last bit.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from simpo.console import UserError
from simpo.engine.team import Team, dispatch

if TYPE_CHECKING:
    from rewards.base import Options, Outcome, Unit
    from rewards.batches import Encoded
    from rewards.checkpoint import Checkpoint

AT_A_TIME = 4  # batches that a worker takes in one call
LOST = "three machines or processes ended while they scored it"


class Scorer:
    """A reward model as a worker of a team: its items are batches, its results their values."""

    def __init__(self, name: str, options: "Options", torch_dtype: str):
        self.name, self.options, self.dtype = name, options, torch_dtype

    def start(self) -> dict[str, Any]:
        import torch

        from rewards import load_reward_model

        torch.backends.cuda.enable_cudnn_sdp(False)  # as in scoring.py
        self.source = load_reward_model(self.name, self.options)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.source.load(torch.device(device), getattr(torch, self.dtype))
        return {"capacity": AT_A_TIME}

    def work(
        self, items: Sequence[tuple[int, Sequence[tuple["Unit", "Encoded"]]]]
    ) -> list[tuple[int, list[float | None]]]:
        from rewards.batches import run

        return [(number, run(self.source.values, batch)) for number, batch in items]


def check_spread(source: Any) -> None:
    """Refuse a source that has nothing to spread.

    Raises:
        UserError: it is no model, or a launcher spreads it already.
    """
    from rewards.checkpoint import Checkpoint

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("accelerate launch starts copies as well: give ray_address or data_parallel_size without it")

    if not isinstance(source, Checkpoint):
        raise UserError(
            f"reward_model: {source.name} scores in this process; ray_address and data_parallel_size are for models"
        )


def score_with(
    team: Team,
    source: "Checkpoint",
    chunks: Iterable[Sequence["Unit"]],
    is_done: Callable[["Unit"], bool],
) -> Iterator[list[tuple["Unit", "Outcome"]]]:
    """Yield what comes of the units that are not done, a batch at a time, as `RewardSource.score_batches` does."""
    from rewards.base import Outcome
    from rewards.batches import outcome_of

    refused: list[list[tuple[Unit, Outcome]]] = []

    def batches() -> Iterator[list[Any]]:
        for chunk in chunks:
            cannot, planned = source.plan(chunk, is_done, "cuda" if team.on_gpus else "cpu")
            refused.extend([cannot] if cannot else [])
            yield from ([batch] for batch in planned)

    for _, batch, values in dispatch(team, batches()):
        while refused:
            yield refused.pop()
        if values is None:
            yield [(unit, Outcome(None, LOST)) for unit, _ in batch]
        else:
            yield [(unit, outcome_of(value, encoded)) for (unit, encoded), value in zip(batch, values, strict=True)]
    yield from refused
