"""Arena-Hard v0.1: verdicts to battles to win rates with bootstrap intervals.

Every battle is against one baseline, so the Bradley-Terry fit that the benchmark makes is, exactly, the share of
weighted battles won (ties count half): P(model beats baseline) = 100 (W + T/2) / N.
"""

import re
from typing import NamedTuple

import numpy as np

from records import Row, kind_of, read_rows, refuse_gaps, refuse_repeats
from simpo.console import UserError, warn

BASELINE, JUDGE, QUESTIONS = "gpt-4-0314", "gpt-4-1106-preview", 500
VERDICT = r"\[\[([AB<>=]+)\]\]"
STRONG_WEIGHT = 3  # a "significantly better" counts as three battles
ROUNDS, SEED = 100, 42
# (share of the battle won by A, number of battles) of each verdict
OUTCOMES = {
    "A>>B": (1.0, STRONG_WEIGHT),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, STRONG_WEIGHT),
}
QUESTION_FIELDS = {"question_id": str, "turns": list}
WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}


class Battle(NamedTuple):
    """One comparison with the baseline: what the model got (1 won, 0.5 tie, 0 lost)."""

    question_id: str
    model: str
    won: float


def parse_verdict(text: str, pattern: str = VERDICT) -> str | None:
    """The verdict that a judge's reply ends in; None when there is none, or several that differ."""
    found = {match for match in re.findall(pattern, text) if match}
    return found.pop() if len(found) == 1 else None


def has_verdict(text: str, pattern: str = VERDICT) -> bool:
    """Whether a reply holds any verdict; one without is asked again, one that contradicts itself is not."""
    return bool(re.search(pattern, text))


def read_battles(path: str, questions: str | None) -> tuple[list[Battle], list[str]]:
    """Read judgments, or a list of battles.

    Args:
        questions: a file with the questions that must all be there; when None, gaps are only warned of.

    Returns:
        The battles in the file's order, each as often as it counts, and the judges' names.

    Raises:
        UserError: another kind of file, a row out of form, a question missing or judged twice.
    """
    rows = read_rows(path, {"question_id": str}, "Arena-Hard judgments or battles")
    if kind_of(rows[0]) == "Arena-Hard battles":
        battles, judges = battles_of_list(path), []
    else:
        battles, judges = battles_of_judgments(path)
    found: dict[str, list[str]] = {}
    for battle in battles:
        found.setdefault(battle.model, []).append(battle.question_id)
    if not battles:
        raise UserError(f"{path}: holds no battle with a verdict")
    for model, own in found.items():
        if questions is not None:
            expected = [row["question_id"] for row in read_rows(questions, QUESTION_FIELDS, "Arena-Hard questions")]
            refuse_gaps(path, own, expected, f"judge the rest of {model}'s answers")
        elif len(set(own)) < QUESTIONS:
            warn(f"{model}: {len(set(own))} of Arena-Hard's {QUESTIONS} questions; published rows are over all")
    if others := sorted(set(judges) - {JUDGE}):
        warn(f"judged by {', '.join(others)}; the published win rates are {JUDGE}'s")
    return battles, judges


def battles_of_list(path: str) -> list[Battle]:
    """Battles of a list with one row per weighted battle, all against one baseline.

    Raises:
        UserError: an unknown winner, or no model that is in every row.
    """
    fields = {"question_id": str, "model_a": str, "model_b": str, "winner": str}
    rows = read_rows(path, fields, "Arena-Hard battles")
    shared = set.intersection(*({row["model_a"], row["model_b"]} for row in rows))
    baseline = BASELINE if BASELINE in shared else rows[0]["model_a"]
    if baseline not in shared:
        raise UserError(f"{path}: no model is in every battle; Arena-Hard compares all models with one ({BASELINE})")
    battles = []
    for number, row in enumerate(rows):
        if row["winner"] not in WINNERS:
            raise UserError(f"{path}, row {number}: winner is {row['winner']!r}, must be one of {', '.join(WINNERS)}")
        won = WINNERS[row["winner"]]
        if row["model_a"] == baseline:
            battles.append(Battle(row["question_id"], row["model_b"], 1 - won))
        else:
            battles.append(Battle(row["question_id"], row["model_a"], won))
    return battles


def battles_of_judgments(path: str) -> tuple[list[Battle], list[str]]:
    """Weighted battles of judgments: in game 1 the model answers as B, in game 2 as A.

    Raises:
        UserError: a question judged twice, or not judged in both orders.
    """
    rows = read_rows(path, {"question_id": str, "model": str, "games": list}, "Arena-Hard judgments")
    refuse_repeats(path, [f"question {row['question_id']} of {row['model']}" for row in rows], "{}")
    battles, without, differing = [], 0, 0
    for number, row in enumerate(rows):
        if len(row["games"]) != 2 or not all(game is None or is_game(game) for game in row["games"]):
            raise UserError(f"{path}, row {number}: games must hold two games with a score each, one per order")
        for game, model_is_a in zip(row["games"], (False, True), strict=True):
            game = game or {"score": None}
            if "judgment" in game:
                differing += parse_verdict(str(game["judgment"])) != game["score"]
            if game["score"] not in OUTCOMES:
                without += 1
                continue
            won_by_a, weight = OUTCOMES[game["score"]]
            won = won_by_a if model_is_a else 1 - won_by_a
            battles += [Battle(row["question_id"], row["model"], won)] * weight
    if without:
        warn(f"{path}: {without} of {2 * len(rows)} games have no verdict and are left out, as in Arena-Hard v0.1")
    if differing:
        warn(f"{path}: in {differing} games the score is not the verdict of the judgment's text; the score counts")
    return battles, sorted({str(row["judge"]) for row in rows if "judge" in row})


def is_game(game: object) -> bool:
    return isinstance(game, dict) and "score" in game


def win_rates(battles: list[Battle]) -> dict[str, float]:
    """Percent of its weighted battles that each model won against the baseline."""
    won: dict[str, list[float]] = {}
    for battle in battles:
        won.setdefault(battle.model, []).append(battle.won)
    return {model: 100 * float(np.mean(values)) for model, values in won.items()}


def bootstrap(battles: list[Battle], rounds: int = ROUNDS, seed: int = SEED) -> dict[str, tuple[float, float]]:
    """The 2.5 and 97.5 percentiles of each model's win rate over resampled battles.

    The rows of all models are drawn together, with replacement, as the benchmark does; so a model's interval moves a
    little with the company it is in.
    """
    generator = np.random.RandomState(seed)  # the benchmark's generator
    models = sorted({battle.model for battle in battles})
    owner = np.array([models.index(battle.model) for battle in battles])
    won = np.array([battle.won for battle in battles])
    rates = np.full((rounds, len(models)), np.nan)
    for number in range(rounds):
        drawn = generator.choice(len(battles), len(battles), replace=True)
        for position in range(len(models)):
            own = won[drawn][owner[drawn] == position]
            if len(own):
                rates[number, position] = 100 * own.mean()
    low, high = np.nanpercentile(rates, [2.5, 97.5], axis=0)
    return {model: (float(low[i]), float(high[i])) for i, model in enumerate(models)}


def score_arena_hard(path: str, questions: str | None) -> dict[str, Row]:
    """Scores of every model in a file of judgments or battles.

    Returns:
        {model: {win_rate, ci_low, ci_high (percent), n_questions, n_battles (weighted), judge (if known)}}.

    Raises:
        UserError: see `read_battles`.
    """
    battles, judges = read_battles(path, questions)
    intervals = bootstrap(battles)
    return {
        model: {
            "win_rate": rate,
            "ci_low": intervals[model][0],
            "ci_high": intervals[model][1],
            "n_questions": len({battle.question_id for battle in battles if battle.model == model}),
            "n_battles": sum(battle.model == model for battle in battles),
            "judge": ", ".join(judges) or None,
        }
        for model, rate in win_rates(battles).items()
    }
