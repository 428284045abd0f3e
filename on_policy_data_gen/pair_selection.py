"""Which of a prompt's responses become the chosen and the rejected one. Pure functions of the scores."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple


class Pair(NamedTuple):
    """Positions of the two responses among the prompt's candidates, and their difference in score (> 0)."""

    chosen: int
    rejected: int
    margin: float


def max_min(scores: Sequence[float]) -> Pair | None:
    """The highest score against the lowest; of equal scores the first one wins, in both places.

    The rule of SimPO (Meng et al. 2024, section 3, "Instruct" setup) and of WPO with ArmoRM.

    Args:
        scores: one per response, higher is better.

    Returns:
        The pair, or None when all scores are equal: no preference.

    Raises:
        ValueError: fewer than two scores, or one that is not finite.
    """
    check_scores(scores)
    return make_pair(scores, scores.index(max(scores)), scores.index(min(scores)))


def wpo_v2(scores: Sequence[float], lengths: Sequence[int]) -> Pair | None:
    """The highest score against the lowest, ties broken by length, as in the second data release of WPO.

    Chosen: of the highest scores, the shortest response. Rejected: of the lowest scores, the response whose length is
    closest to the chosen one's. What is still tied goes to the first. (Zhou et al. 2024, code release, v2.)

    Args:
        scores: one per response, higher is better.
        lengths: of the responses, in any one unit (annotate passes characters).

    Returns:
        The pair, or None when all scores are equal.

    Raises:
        ValueError: fewer than two scores, one that is not finite, or as many lengths as scores are not given.
    """
    check_scores(scores)
    if len(lengths) != len(scores):
        raise ValueError(f"{len(scores)} scores but {len(lengths)} lengths")
    positions = range(len(scores))
    chosen = min((i for i in positions if scores[i] == max(scores)), key=lambda i: lengths[i])
    lowest = (i for i in positions if scores[i] == min(scores))
    rejected = min(lowest, key=lambda i: abs(lengths[i] - lengths[chosen]))
    return make_pair(scores, chosen, rejected)


def random_rejected(scores: Sequence[float], rng: random.Random) -> Pair | None:
    """The highest score (the first, of equal ones) against a random response with a lower one.

    The rule of WPO's first data release (Zhou et al. 2024): any other response. Those that tie with the chosen one
    are left out, because such a pair states no preference.

    Args:
        scores: one per response, higher is better.
        rng: the source of chance; the caller seeds it.

    Returns:
        The pair, or None when all scores are equal.

    Raises:
        ValueError: fewer than two scores, or one that is not finite.
    """
    check_scores(scores)
    chosen = scores.index(max(scores))
    lower = [i for i, score in enumerate(scores) if score < scores[chosen]]
    return make_pair(scores, chosen, rng.choice(lower)) if lower else None


def check_scores(scores: Sequence[float]) -> None:
    """Raises ValueError: fewer than two scores, or one that is NaN or infinite."""
    if len(scores) < 2:
        raise ValueError(f"a pair needs two scores or more, got {len(scores)}")
    if bad := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
        raise ValueError(f"score {bad[0]} is {scores[bad[0]]}")


def make_pair(scores: Sequence[float], chosen: int, rejected: int) -> Pair | None:
    margin = scores[chosen] - scores[rejected]
    return Pair(chosen, rejected, margin) if margin > 0 else None
