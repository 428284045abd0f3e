"""Which of a prompt's responses become the chosen and the rejected one: pure functions of the scores.

A rule makes one pair, `choose_pairs` several. To add a rule, write a function here with the decorator `pair_rule`;
`--pair_selection` finds it by its name.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Candidates(NamedTuple):
    """What a rule chooses from: the responses to one prompt."""

    scores: Sequence[float]
    """One per response, higher is better."""
    lengths: Sequence[int]
    """Of the responses, in any one unit (annotate passes characters)."""
    rng: random.Random
    """The source of chance, seeded by the caller."""


class Pair(NamedTuple):
    """Positions of the two responses among the prompt's candidates, and their difference in score (> 0)."""

    chosen: int
    rejected: int
    margin: float


PairRule = Callable[[Candidates], Pair | None]
PAIR_RULES: dict[str, PairRule] = {}


def pair_rule(choose: Callable[[Candidates], tuple[int, int]]) -> PairRule:
    """Decorator: make a rule of a function that returns the positions (chosen, rejected).

    The rule returns None where the two have the same score, which states no preference. It raises ValueError for fewer
    than two scores, one that is not finite, or lengths that do not match.
    """

    def rule(candidates: Candidates) -> Pair | None:
        scores = candidates.scores
        if len(scores) < 2:
            raise ValueError(f"a pair needs two scores or more, got {len(scores)}")
        if len(candidates.lengths) != len(scores):
            raise ValueError(f"{len(scores)} scores but {len(candidates.lengths)} lengths")
        if bad := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
            raise ValueError(f"score {bad[0]} is {scores[bad[0]]}")
        if min(scores) == max(scores):
            return None
        chosen, rejected = choose(candidates)
        margin = scores[chosen] - scores[rejected]
        return Pair(chosen, rejected, margin) if margin > 0 else None

    rule.__doc__, rule.__name__ = choose.__doc__, choose.__name__
    PAIR_RULES[choose.__name__] = rule
    return rule


def choose_pairs(
    rule: PairRule, scores: Sequence[float | None], responses: Sequence[str], count: int, rng: random.Random
) -> list[Pair]:
    """Up to `count` pairs that share no text: the rule's, then the rule's among what is left, and so on.

    With max_min: best and worst, second best and second worst. A response without a score is in no pair. A text that
    comes twice with two scores counts with the first one, so that no pair is of one text.

    Returns:
        Pairs of positions in `responses`.
    """
    first: dict[str, float] = {}
    left = [i for i, score in enumerate(scores) if score is not None and first.setdefault(responses[i], score) == score]
    pairs: list[Pair] = []
    while len(pairs) < count and len(left) >= 2:
        pair = rule(Candidates([scores[i] for i in left], [len(responses[i]) for i in left], rng))
        if pair is None:
            break
        pairs.append(Pair(left[pair.chosen], left[pair.rejected], pair.margin))
        used = {responses[left[pair.chosen]], responses[left[pair.rejected]]}
        left = [i for i in left if responses[i] not in used]
    return pairs


@pair_rule
def max_min(candidates: Candidates) -> tuple[int, int]:
    """The highest score against the lowest; of equal scores the first one wins, in both places.

    The rule of SimPO (Meng et al. 2024, section 3, "Instruct" setup) and of WPO with ArmoRM.
    """
    scores = candidates.scores
    return scores.index(max(scores)), scores.index(min(scores))


@pair_rule
def wpo_v2(candidates: Candidates) -> tuple[int, int]:
    """The highest score against the lowest, ties broken by length, as in the second data release of WPO.

    Chosen: of the highest scores, the shortest response. Rejected: of the lowest scores, the response whose length is
    closest to the chosen one's. What is still tied goes to the first. (Zhou et al. 2024, code release, v2.)
    """
    scores, lengths, _ = candidates
    best, worst = max(scores), min(scores)
    chosen = min((i for i, score in enumerate(scores) if score == best), key=lambda i: lengths[i])
    lowest = (i for i, score in enumerate(scores) if score == worst)
    return chosen, min(lowest, key=lambda i: abs(lengths[i] - lengths[chosen]))


@pair_rule
def random_rejected(candidates: Candidates) -> tuple[int, int]:
    """The highest score (the first, of equal ones) against a random response with a lower one.

    The rule of WPO's first data release (Zhou et al. 2024): any other response. Those that tie with the chosen one
    are left out, because such a pair states no preference.
    """
    scores = candidates.scores
    chosen = scores.index(max(scores))
    return chosen, candidates.rng.choice([i for i, score in enumerate(scores) if score < scores[chosen]])
