"""Training in rounds, in numbers: what every round's model made of the held-out prompts, and what it was trained on."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from reporting.checks import Row
from reporting.headline import Headline, headline, tone_of
from reporting.numbers import NONE, gain, is_finite, number, share_error, signed, standard_error
from reporting.numbers import with_error as plus_minus
from reporting.read import Run, Stage
from reporting.read_data import ScoredData

Cells = tuple[str, list[str]]


# ---- the table -----------------------------------------------------------------------------------------------------


def rounds_table(run: Run) -> list[tuple[str, list[Cells]]]:
    """(part, [(what, a cell for each model)]): held-out answers, the pairs of each round, its training."""
    rounds = run.rounds
    if rounds is None or not rounds.models:
        return []
    held_out = [
        *measure_rows("reward", "", [model.rewards for model in rounds.models], 1, 3),
        *measure_rows("correct, %", ", points", [model.correct for model in rounds.models], 100, 1),
        ("length, tokens", [length_cell(model.lengths) for model in rounds.models]),
        ("cut by max_tokens", [f"{model.cut:,}" for model in rounds.models]),
    ]
    numbers = [model.round for model in rounds.models]
    sampled, paired = ([named(run.data, f"round_{n}/{part}") for n in numbers] for part in ("train", "annotated"))
    stages = [named(run.stages, f"round_{n}") for n in numbers]
    pairs = [*count_rows(sampled), *count_rows(paired), *pair_rows(paired)]
    parts = [("Answers to the held-out prompts", held_out), ("Pairs", pairs), ("Training", training_rows(stages))]
    return [(name, rows) for name, rows in parts if rows]


def measure_rows(what: str, unit: str, values: Sequence[dict[str, float]], scale: int, digits: int) -> list[Cells]:
    """A mean with its standard error, and the difference to the first model, paired by prompt.

    Args:
        values: of each model, by prompt.
    """
    if not any(values):
        return []
    first = values[0]
    means, changes = [], []
    for own in values:
        mean = mean_and_error(own.values(), scale)
        means.append(plus_minus(*mean, digits) if mean else NONE)
        change = mean_and_error([own[p] - first[p] for p in own if p in first], scale) if own is not first else None
        changes.append(f"{signed(change[0], digits)} ± {change[1]:.{digits}f}" if change else NONE)
    return [(what, means), (f"change from the start{unit}, paired by prompt", changes)]


def mean_and_error(values: Iterable[float], scale: float = 1) -> tuple[float, float] | None:
    """Mean and its standard error; None where there are no values."""
    found = np.array(list(values)) * scale
    return (float(found.mean()), standard_error(found)) if len(found) else None


def length_cell(lengths: Sequence[int]) -> str:
    found = mean_and_error(lengths)
    return plus_minus(*found, 1) if found else NONE


def count_rows(parts: Sequence[ScoredData | None]) -> list[Cells]:
    names = dict.fromkeys(name for part in parts if part for name in part.counts)
    return [(n, [f"{part.counts[n]:,}" if part and n in part.counts else NONE for part in parts]) for n in names]


def pair_rows(parts: Sequence[ScoredData | None]) -> list[Cells]:
    """Medians over a round's pairs."""
    measures: dict[str, Callable[[Any], float]] = {
        "margin (median)": lambda pair: pair.chosen - pair.rejected,
        "length of chosen, characters (median)": lambda pair: pair.chosen_length,
        "length of rejected, characters (median)": lambda pair: pair.rejected_length,
    }
    return [
        (what, [number(float(np.median(list(map(of, part.pairs))))) if part and part.pairs else NONE for part in parts])
        for what, of in measures.items()
        if any(part and part.pairs for part in parts)
    ]


def training_rows(stages: Sequence[Stage | None]) -> list[Cells]:
    """What a training kept and dropped of its pairs, and how it ranks those that it did not see."""
    if not any(stages):
        return []

    def report(stage: Stage | None) -> Row:
        return stage.data_report.get("train", {}) if stage else {}

    kept = [f"{report(stage)['rows']:,}" if "rows" in report(stage) else NONE for stage in stages]
    dropped = [sum(v for k, v in report(stage).items() if k.startswith("dropped_")) for stage in stages]
    ranked = []
    for stage in stages:
        share, count = (
            (stage.results if stage else {}).get(f"eval_{key}") for key in ("rewards/accuracies", "samples")
        )
        error = 100 * share_error(share, count) if is_finite(share) and count else None
        ranked.append(plus_minus(100 * share, error, 1) if is_finite(share) else NONE)
    return [
        ("pairs trained on", kept),
        ("pairs dropped before training", [NONE if k == NONE else str(n) for n, k in zip(dropped, kept, strict=True)]),
        ("test pairs with the higher reward on chosen, %", ranked),
    ]


def named(parts: Iterable[Any], name: str) -> Any:
    return next((part for part in parts if part.name == name), None)


# ---- the headline --------------------------------------------------------------------------------------------------


def run_headline(run: Run) -> Headline:
    """A run's headline; of rounds, with the one that was better than the last, if one was."""
    top = rounds_headline(run) or headline(run)
    return top._replace(text=top.text + better_round(run))


def better_round(run: Run) -> str:
    """The best round where the newest model is worse by more than two standard errors, paired by prompt."""
    models = run.rounds.models if run.rounds else []
    for what, scale, digits in (("correct", 100, 1), ("rewards", 1, 3)):
        measured = [(model.name, getattr(model, what)) for model in models if getattr(model, what)]
        if len(measured) < 2:
            continue
        best, values = max(measured, key=lambda item: np.mean(list(item[1].values())))
        last, newest = measured[-1]
        found = mean_and_error([newest[prompt] - values[prompt] for prompt in newest if prompt in values], scale)
        if not found or tone_of(*found) != "worse":
            return ""
        mean, unit = np.mean(list(values.values())) * scale, " % correct" if scale == 100 else " mean reward"
        change = f"{signed(found[0], digits)} ± {found[1]:.{digits}f}"
        return f"\nBest was {best} with {mean:.{digits}f}{unit}: {change} from there to {last}."
    return ""


def rounds_headline(run: Run) -> Headline | None:
    """Reward of the held-out answers, first model to newest; None where grades say more, or nothing is scored yet."""
    models = [model for model in run.rounds.models if model.rewards] if run.rounds else []
    if len(models) < 2 or gain(run) is not None:
        return None
    first, last = models[0].rewards, models[-1].rewards
    both = [prompt for prompt in last if prompt in first]
    change, error = mean_and_error([last[prompt] - first[prompt] for prompt in both]) or (0.0, 0.0)
    ends = [mean_and_error(rewards.values()) or (0.0, 0.0) for rewards in (first, last)]
    tone = tone_of(change, error)
    verdict = {"neutral": "No clear change: ", "better": "", "worse": "Worse: "}[tone]
    text = (
        f"{verdict}mean reward of the answers to {len(both):,} held-out prompts, {models[0].name} to "
        f"{models[-1].name}; change {signed(change, 3)} (standard error {error:.3f}, paired by prompt)."
    )
    return Headline(" → ".join(f"{mean:.3f}" for mean, _ in ends), tone, text)
