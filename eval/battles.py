"""Arena-Hard's battles: judgments to weighted comparisons with the baseline, and these to win rates.

v0.1: every battle is against one baseline, so the Bradley-Terry fit that the benchmark makes is, exactly, the share of
weighted battles won (ties count half): P(model beats baseline) = 100 (W + T/2) / N.
"""

from typing import Any, NamedTuple

import numpy as np

from records import Row, read_rows, refuse_repeats
from simpo.chat.thinking import after_thinking
from simpo.console import UserError, warn
from simpo.judge.tasks import RULES, find_labels

VERDICT, IN_ONE = r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"  # v0.1's pattern, and what today's tool reads as well
BASELINE, V01 = "gpt-4-0314", "arena-hard-v0.1"
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
# v2.0 reads these as well
MIRRORED = {"B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}


def category_of(row: Row) -> str:
    """v0.1's rows have no category, or the benchmark's name."""
    return str(row.get("category") or V01)


class Battle(NamedTuple):
    """One comparison with the baseline: what the model got (1 won, 0.5 tie, 0 lost)."""

    question_id: str
    model: str
    won: float
    category: str = V01


def parse_verdict(text: str, rule: str = "all agree", patterns: tuple[str, ...] = (VERDICT,)) -> str | None:
    """The verdict that a judge's reply ends in; None when there is none, or several that differ."""
    labels = find_labels(after_thinking(text) if "thinking" in rule else text, patterns)
    return RULES[rule](labels) if labels else None


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


def battles_of_judgments(path: str, today: dict[str, Any] | None) -> tuple[list[Battle], list[str]]:
    """Weighted battles of judgments: in game 1 the model answers as B, in game 2 as A.

    A game without a verdict is left out, as in v0.1; of v2.0's questions both, as there.

    Raises:
        UserError: a question judged twice, or not judged in both orders.
    """
    rows = read_rows(path, today or {"question_id": str, "model": str, "games": list}, "Arena-Hard judgments")
    name = "uid" if today else "question_id"
    refuse_repeats(path, [f"question {row[name]} of {row['model']}" for row in rows], "{}")
    battles, without, differing = [], 0, 0
    for number, row in enumerate(rows):
        if len(row["games"]) != 2 or not all(game is None or is_game(game) for game in row["games"]):
            raise UserError(f"{path}, row {number}: games must hold two games with a score each, one per order")
        own, category = [], category_of(row)
        for game, model_is_a in zip(row["games"], (False, True), strict=True):
            game = game or {"score": None}
            differing += differs(game)
            label = game["score"] if category == V01 else MIRRORED.get(game["score"], game["score"])
            if label not in OUTCOMES:
                without += 1
                continue
            won_by_a, weight = OUTCOMES[label]
            won = won_by_a if model_is_a else 1 - won_by_a
            own.append([Battle(row[name], row["model"], won, category)] * weight)
        if category == V01 or len(own) == 2:
            battles += [battle for game in own for battle in game]
    if without:
        warn(f"{path}: {without} of {2 * len(rows)} games have no verdict and are left out, as in the benchmark")
    if differing:
        warn(f"{path}: in {differing} games the score is not the verdict of the judgment's text; the score counts")
    return battles, sorted({str(row["judge"]) for row in rows if "judge" in row})


def is_game(game: object) -> bool:
    return isinstance(game, dict) and isinstance(game.get("score", 0), str | None)


def differs(game: Row) -> bool:
    """Whether a game's score is not what its judgment says; today's layout has the last verdict."""
    said = game.get("judgment")
    if said is None:
        return False
    text, rule = (said.get("answer"), "last") if isinstance(said, dict) else (said, "all agree")
    rule = game["rule"] if game.get("rule") in RULES else rule
    return parse_verdict(str(text), rule, (VERDICT, IN_ONE) if isinstance(said, dict) else (VERDICT,)) != game["score"]


def v01_numbers(battles: list[Battle]) -> dict[str, Row]:
    """v0.1: {model: {win_rate, ci_low, ci_high (2.5 and 97.5 percentiles), n_battles}}."""
    intervals = bootstrap(battles)
    return {
        model: {
            "win_rate": rate,
            "ci_low": intervals[model][0],
            "ci_high": intervals[model][1],
            "n_battles": sum(battle.model == model for battle in battles),
        }
        for model, rate in win_rates(battles).items()
    }


def v2_numbers(battles: list[Battle]) -> dict[str, Row]:
    """v2.0: the mean over bootstrap rounds of a model's own games, 5 and 95 percentiles; keys as of `v01_numbers`."""
    generator, numbers = np.random.RandomState(SEED), {}
    for model in dict.fromkeys(battle.model for battle in battles):
        won = np.array([battle.won for battle in battles if battle.model == model])
        rates = 100 * generator.choice(won, (ROUNDS, len(won)), replace=True).mean(axis=1)
        low, high = np.percentile(rates, [5, 95])
        numbers[model] = {"win_rate": float(rates.mean()), "ci_low": float(low), "ci_high": float(high)}
        numbers[model]["n_battles"] = len(won)
    return numbers


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
