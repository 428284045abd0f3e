"""What the report says in numbers: what a run achieved, and its evaluation results with their standard errors."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from reporting.published import beside_others
from reporting.read import ITSELF, Change, Comparison, Run, Stage

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
# (heading, names of the metric: the preference trainers', then TRL's)
METRICS = [
    ("Loss", ("loss",)),
    ("Reward margin", ("rewards/margins", "margin")),
    ("Reward accuracy", ("rewards/accuracies", "accuracy")),
    ("Log-probability of chosen", ("logps/chosen",)),
    ("Log-probability of rejected", ("logps/rejected",)),
    ("Token accuracy", ("mean_token_accuracy",)),
    ("Mean WPO weight", ("weights/mean",)),
    ("Gradient norm", ("grad_norm",)),
]
# (heading, keys of the value, its standard error and its 95 % interval) in eval/score.py's files
SCORES = [
    ("length-controlled win rate, %", "length_controlled_winrate", "lc_standard_error", ()),
    ("win rate, %", "win_rate", "standard_error", ("ci_low", "ci_high")),
    ("score, 1 to 10", "score", None, ()),
    ("score of turn 1", "turn_1", None, ()),
    ("score of turn 2", "turn_2", None, ()),
    ("mean answer length", "avg_length", None, ()),
]
# (heading, keys of all_results.json without eval_: the preference trainers', then TRL's)
TRAINER_RESULTS = [
    ("loss", ("loss",)),
    ("reward accuracy, %", ("rewards/accuracies", "accuracy")),
    ("reward margin", ("rewards/margins", "margin")),
    ("token accuracy", ("mean_token_accuracy",)),
]
# What becomes of an answer, by (was correct, is correct), or by whether it stayed the same where nobody graded it
GRADED = {
    (True, False): "became wrong",
    (False, True): "became right",
    (False, False): "still wrong",
    (True, True): "still right",
}
UNGRADED = {False: "changed", True: "unchanged"}


class Measure(NamedTuple):
    """One evaluation number, with its standard error after ±."""

    where: str
    what: str
    value: str


# ---- evaluation ----------------------------------------------------------------------------------------------------


def evaluation_blocks(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(what was evaluated, [(measure, one cell per run)]): the same measure of all runs beside each other."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    for number_of_run, run in enumerate(runs):
        for measure in measures(run):
            row = found.setdefault(measure.where, {}).setdefault(measure.what, {})
            row[number_of_run] = measure.value
    return [
        (where, [(what, [row.get(i, NONE) for i in range(len(runs))]) for what, row in rows.items()])
        for where, rows in found.items()
    ]


class Gain(NamedTuple):
    """Accuracy of the answers before and after."""

    before: float
    after: float
    n: int
    error: float
    """Standard error of the difference."""
    is_paired: bool

    @property
    def change(self) -> str:
        """In points, with its standard error."""
        return f"{signed(percent(self.after - self.before), 1)} ± {percent(self.error):.1f}"


def gain(run: Run) -> tuple[Gain, Comparison | None] | None:
    """Accuracy before and after, from the graded answers, else from the summary."""
    graded = next((c for c in run.comparisons if c.is_graded), None)
    if graded:
        return gain_of(graded.changes), graded
    before, after, n = (run.summary.get(key) for key in ("accuracy_before", "accuracy_after", "n"))
    if before is None or after is None or not n:
        return None
    return Gain(before, after, n, math.hypot(share_error(before, n), share_error(after, n)), False), None


def gain_of(changes: Sequence[Change]) -> Gain:
    """Of graded answers."""
    was = np.array([change.was_correct for change in changes], dtype=float)
    now = np.array([change.is_correct for change in changes], dtype=float)
    return Gain(was.mean(), now.mean(), len(was), standard_error(now - was), True)


def gains_by_group(graded: Comparison) -> dict[str, Gain]:
    """Of each group of prompts, the largest gain first."""
    names = dict.fromkeys(name for change in graded.changes for name in change.groups)
    gains = {name: gain_of([change for change in graded.changes if name in change.groups]) for name in names}
    return dict(sorted(gains.items(), key=lambda item: item[1].before - item[1].after))


def measures(run: Run) -> Iterable[Measure]:
    """All evaluation numbers of a run, with standard errors where they can be told."""
    if (found := gain(run)) is not None:
        result, graded = found
        where = f"Answers to {result.n:,} prompts"
        for what, share in (("before", result.before), ("after", result.after)):
            error = percent(share_error(share, result.n))
            yield Measure(where, f"correct {what}, %", with_error(percent(share), error, 1))
        kind = "paired by prompt" if result.is_paired else "unpaired"
        yield Measure(where, f"difference, points ({kind})", result.change)
        for name, own in gains_by_group(graded).items() if graded else ():
            text = f"{percent(own.before):.1f} → {percent(own.after):.1f} ({own.change})"
            yield Measure("Correct of each kind, %: before, after, difference", f"{name} (n = {own.n:,})", text)
    for side in ("before", "after"):
        if run.summary.get(f"mean_length_{side}") is not None:
            where = f"Answers to {run.summary['n']:,} prompts" if run.summary.get("n") else "Answers"
            yield Measure(where, f"mean length {side}, tokens", length(run.summary[f"mean_length_{side}"]))
    for name, models in run.scores.items():
        for model, numbers in models.items():
            if len(models) == 1:  # so that one model of each run stands beside the others
                yield Measure(name, "model", model)
            yield from score_measures(name if len(models) == 1 else f"{name}: {model}", numbers)
    for stage in run.stages:
        yield from trainer_measures(stage)


def score_measures(where: str, numbers: dict[str, Any]) -> Iterable[Measure]:
    for what, key, error_key, interval in SCORES:
        value = numbers.get(key)
        if not is_finite(value):
            continue
        text = with_error(value, numbers.get(error_key), 2) if key != "avg_length" else number(value)
        if interval and all(is_finite(numbers.get(end)) for end in interval):
            text += f" [{numbers[interval[0]]:.1f} to {numbers[interval[1]]:.1f}]"
        yield Measure(where, what, text)


def trainer_measures(stage: Stage) -> Iterable[Measure]:
    """The trainer's own evaluation on held-out data, after training."""
    where = "Held-out data" if stage.name == ITSELF else f"{stage.name}, held-out data"
    count = stage.results.get("eval_samples")
    for what, keys in TRAINER_RESULTS:
        value = next((v for key in keys if is_finite(v := stage.results.get(f"eval_{key}"))), None)
        if value is None:
            continue
        text = number(value)
        if what == "reward accuracy, %":  # a share of the rows, which makes its error known
            text = with_error(100 * value, 100 * share_error(value, count) if count else None, 1)
        yield Measure(where, what, text)
    if count:
        yield Measure(where, "rows", f"{count:,}")
    for what, value in beside_others(stage):
        yield Measure(where, what, value)


def with_error(value: float, error: float | None, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", MINUS) + (f" ± {error:.{decimals}f}" if error is not None else "")


def share_error(share: float, n: int) -> float:
    """Standard error of a share of n independent trials."""
    return math.sqrt(max(0.0, share * (1 - share)) / n)


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


# ---- what the numbers come from --------------------------------------------------------------------------------


def points(stage: Stage, names: Sequence[str], prefix: str) -> tuple[list[float], list[float]]:
    """(steps, values) of a metric, under the first of its names that the stage logged; the last value of a step."""
    name = next((prefix + n for n in names if any(prefix + n in entry for entry in stage.history)), prefix + names[0])
    found = {e["step"]: e[name] for e in stage.history if "step" in e and is_finite(e.get(name))}
    return list(found), list(found.values())


def groups(comparison: Comparison) -> dict[str, list[Change]]:
    """The changes by what became of them, the worst first."""
    names = GRADED if comparison.is_graded else UNGRADED
    found: dict[str, list[Change]] = {name: [] for name in names.values()}
    for change in comparison.changes:
        what = (change.was_correct, change.is_correct) if comparison.is_graded else change.before == change.after
        found[names[what]].append(change)
    return found


# ---- numbers -------------------------------------------------------------------------------------------------------


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def is_bad(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def number(value: float) -> str:
    """Four significant digits, with a real minus sign."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}".replace("-", MINUS)


def percent(share: float) -> float:
    """A share in percent, without the last bits that would round 51.75 down."""
    return round(100 * share, 9)


def length(value: float) -> str:
    """A mean length: no more digits than mean something."""
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
