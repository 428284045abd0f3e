"""Scores that the rows hold already: `--reward_model given` uses them as they are.

Rows have all_rm_scores beside all_generated_responses, or score_chosen and score_rejected beside chosen and rejected.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from conversations import Prompt
from rewards.base import Outcome, RewardSource, Unit


class Given(RewardSource):
    name = "given"

    @classmethod
    def recognizes(cls, name: str) -> bool:
        return name == "given"

    def units(self, prompt: Prompt, responses: Sequence[str], columns: dict[str, Any] | None = None) -> list[Unit]:
        scores = (columns or {}).get("all_rm_scores") or [None] * len(responses)
        return [(prompt, *scored) for scored in zip(responses, scores, range(len(scores)), strict=True)]

    def score_batches(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool] = lambda unit: False
    ) -> Iterator[list[tuple[Unit, Outcome]]]:
        yield [(unit, outcome_of(unit[2])) for unit in dict.fromkeys(units) if not is_done(unit)]


def outcome_of(score: float | None) -> Outcome:
    return Outcome(None, "its row has no score for it") if score is None else Outcome(score)


SOURCE = Given
