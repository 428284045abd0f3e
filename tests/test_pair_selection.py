"""Pair selection: hand-checked scores and ties, and real scores."""

import gzip
import json
import random

import numpy as np
import pytest

import pair_selection
from pair_selection import PAIR_RULES, Candidates, Pair, choose_pairs

NAN, INF = float("nan"), float("inf")


def max_min(scores):
    return PAIR_RULES["max_min"](Candidates(scores, [1] * len(scores), random.Random(0)))


def wpo_v2(scores, lengths):
    return PAIR_RULES["wpo_v2"](Candidates(scores, lengths, random.Random(0)))


def random_rejected(scores, rng):
    return PAIR_RULES["random_rejected"](Candidates(scores, [1] * len(scores), rng))


def test_max_min_by_hand():
    assert max_min([0.1, 0.5, 0.25]) == Pair(chosen=1, rejected=0, margin=0.4)
    assert max_min([3, 1]) == Pair(0, 1, 2)


def test_max_min_first_wins_ties():
    assert max_min([1.0, 2.0, 2.0, 1.0, 1.5])[:2] == (1, 0)


def test_equal_scores_make_no_pair():
    assert max_min([0.5, 0.5, 0.5]) is None
    assert wpo_v2([0.5, 0.5], [1, 2]) is None
    assert random_rejected([0.5, 0.5], random.Random(0)) is None


def test_wpo_v2_without_ties_is_max_min():
    assert wpo_v2([0.1, 0.5, 0.2], [9, 5, 1])[:2] == (1, 0)


def test_wpo_v2_chosen_tie_takes_the_shortest():
    assert wpo_v2([5, 5, 1, 5], [30, 20, 7, 25])[:2] == (1, 2)
    assert wpo_v2([5, 5, 1], [20, 20, 7])[:2] == (0, 2)  # as short: the first


def test_wpo_v2_rejected_tie_takes_the_closest_in_length():
    # chosen: position 2, of 50 characters; the lowest have 10, 90 and 55
    assert wpo_v2([1, 1, 5, 1, 3], [10, 90, 50, 55, 50])[:2] == (2, 3)
    assert wpo_v2([1, 5, 1], [40, 50, 60])[:2] == (1, 0)  # as close: the first


def test_wpo_v2_both_ties():
    # highest at 0 and 3: the shorter is 3 (20); lowest at 1 (100) and 4 (24): the closer is 4
    assert wpo_v2([4, 1, 2, 4, 1], [80, 100, 20, 20, 24]) == Pair(3, 4, 3)


def test_random_rejected():
    scores = [0.3, 0.9, 0.1, 0.9, 0.5]
    pairs = [random_rejected(scores, random.Random(seed)) for seed in range(200)]
    assert {pair.chosen for pair in pairs} == {1}
    assert {pair.rejected for pair in pairs} == {0, 2, 4}  # not 3, which ties with the chosen one
    assert random_rejected(scores, random.Random(7)) == random_rejected(scores, random.Random(7))


def test_disjoint_pairs():
    """They share no text; one text is no pair, and of its two scores the first counts."""

    def pairs(scores, responses, count=9, rule="max_min"):
        found = choose_pairs(PAIR_RULES[rule], scores, responses, count, random.Random(0))
        return [responses[pair.chosen] + responses[pair.rejected] for pair in found]

    assert pairs([3, 1, 5, 2, 4], "abcde") == ["cb", "ed"] and pairs([3, 1, 5, 2, 4], "abcde", count=1) == ["cb"]
    assert pairs([1, 2, 2, 3], "abcd") == ["da"]  # what is left is tied
    assert pairs([None, 2, 1, None], "abcd") == ["bc"] and pairs([None, 2], "ab") == []
    assert pairs([5, 5, 1, 2, 3], "aabcd") == ["ab", "dc"]  # each a once
    assert pairs([5, 1, 3, 2], "aabc") == ["ac"] and pairs([5, 1], "aa") == []
    assert pairs([9, 1, 9, 9, 1], ["long one", "x", "ab", "abc", "abcd"], rule="wpo_v2") == ["abx", "abcabcd"]
    rng = random.Random(1)
    for _ in range(200):
        texts = [rng.choice("abcdef") for _ in range(rng.randint(0, 9))]
        scores = [rng.choice([None, 1, 2, 3]) for _ in texts]
        for rule in ("max_min", "wpo_v2", "random_rejected"):
            used = "".join(pairs(scores, texts, rule=rule))
            assert len(used) == len(set(used))


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, NAN], [INF, 1.0]])
def test_bad_scores(scores):
    for select in (max_min, lambda s: wpo_v2(s, [1] * len(s)), lambda s: random_rejected(s, random.Random(0))):
        with pytest.raises(ValueError):
            select(scores)


def test_lengths_must_match():
    with pytest.raises(ValueError, match="lengths"):
        wpo_v2([1.0, 2.0], [1])


def test_a_rule_is_one_function(monkeypatch):
    monkeypatch.setattr(pair_selection, "PAIR_RULES", {})

    @pair_selection.pair_rule
    def best_against_second(candidates):
        order = sorted(range(len(candidates.scores)), key=lambda i: -candidates.scores[i])
        return order[0], order[1]

    rule = pair_selection.PAIR_RULES["best_against_second"]
    assert rule(Candidates([1, 3, 2], [1, 1, 1], random.Random(0))) == Pair(1, 2, 1)
    assert rule(Candidates([2, 2, 2], [1, 1, 1], random.Random(0))) is None


def test_real_scores(shared):
    """GPT-4 win probabilities: numpy's argmax and argmin agree; wpo_v2 obeys its rules."""
    with gzip.open(shared / "real_decodes" / "scored_5x400.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        scores, responses = row["all_rm_scores"], row["all_generated_responses"]
        pair, v2 = max_min(scores), wpo_v2(scores, [len(response) for response in responses])
        if min(scores) == max(scores):
            assert pair is None and v2 is None
            continue
        assert (pair.chosen, pair.rejected) == (np.argmax(scores), np.argmin(scores))
        assert pair.margin == max(scores) - min(scores)
        assert (scores[v2.chosen], scores[v2.rejected]) == (max(scores), min(scores))
        length = len(responses[v2.chosen])
        assert all(len(r) >= length for r, s in zip(responses, scores, strict=True) if s == max(scores))
        distance = abs(len(responses[v2.rejected]) - length)
        assert all(abs(len(r) - length) >= distance for r, s in zip(responses, scores, strict=True) if s == min(scores))
