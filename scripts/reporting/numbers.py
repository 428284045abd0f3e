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


class Headline(NamedTuple):
    """What became better (or did not), in a figure and a sentence."""

    figure: str
    tone: str
    """better, worse or neutral."""
    text: str


class Measure(NamedTuple):
    """One evaluation number, with its standard error after ±."""

    where: str
    what: str
    value: str


# ---- headline ------------------------------------------------------------------------------------------------------


def headline(run: Run) -> Headline:
    """What the run achieved, by the best evidence it left: graded answers, scores, held-out pairs, training loss."""
    if (result := gain(run)) is not None:
        return answers_headline(run, *result)
    for name, models in run.scores.items():
        model, numbers = next(iter(models.items()))
        for measure in score_measures(name, numbers) if len(models) == 1 else ():
            return Headline(measure.value, "neutral", f"{measure.what} of {model} ({name}).")
    for stage in reversed(run.stages):
        if found := stage_headline(stage):
            return found
    pairs = sum(len(data.pairs) for data in run.data)
    if pairs:
        return Headline(f"{pairs:,} pairs", "neutral", "of responses that a reward model scored.")
    return Headline(NONE, "neutral", "nothing measured yet.")


class Gain(NamedTuple):
    """Accuracy of the answers before and after."""

    before: float
    after: float
    n: int
    error: float
    """Standard error of the difference."""
    is_paired: bool


def gain(run: Run) -> tuple[Gain, Comparison | None] | None:
    """Accuracy before and after, from the graded answers, else from the summary."""
    graded = next((c for c in run.comparisons if c.is_graded), None)
    if graded:
        was = np.array([change.was_correct for change in graded.changes], dtype=float)
        now = np.array([change.is_correct for change in graded.changes], dtype=float)
        return Gain(was.mean(), now.mean(), len(was), standard_error(now - was), True), graded
    before, after, n = (run.summary.get(key) for key in ("accuracy_before", "accuracy_after", "n"))
    if before is None or after is None or not n:
        return None
    return Gain(before, after, n, math.hypot(share_error(before, n), share_error(after, n)), False), None


def answers_headline(run: Run, result: Gain, graded: Comparison | None) -> Headline:
    change = result.after - result.before
    tone = tone_of(change, result.error)
    verdict = {"neutral": "No clear change: ", "better": "", "worse": "Worse: "}[tone]
    text = (
        f"{verdict}{signed(100 * change, 1)} points of correct answers "
        f"(standard error {100 * result.error:.1f}) on {result.n:,} prompts"
    )
    if graded:
        found = groups(graded)
        text += f"; {len(found['became right'])} answers became right, {len(found['became wrong'])} became wrong"
    lengths = [run.summary.get(f"mean_length_{side}") for side in ("before", "after")]
    if None not in lengths:
        text += f". Mean length {' → '.join(map(number, lengths))} tokens"
    if run.summary.get("seconds"):
        text += f". Took {duration(run.summary['seconds'])}"
    return Headline(f"{100 * result.before:.1f} % → {100 * result.after:.1f} %", tone, text + ".")


def stage_headline(stage: Stage) -> Headline | None:
    """Reward accuracy, or else the loss, from the first evaluation to the last; without any, over the training."""
    for prefix, where in (("eval_", "held-out"), ("", "training")):
        losses, margins, accuracies = (points(stage, names, prefix)[1] for _, names in METRICS[:3])
        values = accuracies or losses
        if not values:
            continue
        ends = (values[0], values[-1]) if prefix else ends_of(values)
        tone = "neutral"
        figures = [f"{100 * value:.1f} %" if accuracies else f"{value:.3f}" for value in ends]
        text = f"of {where} pairs have the higher reward on the chosen response" if accuracies else f"{where} loss"
        text += f" in {stage.name}" if stage.name != ITSELF else ""
        if len(values) > 1:
            text += ", first evaluation to last" if prefix else ", first tenth of the steps to last"
        if margins:
            text += f"; mean margin {number(margins[-1])} at the end"
        if prefix and accuracies and (count := stage.results.get("eval_samples")):
            errors = [share_error(share, count) for share in ends]
            text += f"; standard errors {100 * errors[0]:.1f} and {100 * errors[1]:.1f} points"
            tone = tone_of(ends[1] - ends[0], math.hypot(*errors))
        return Headline(" → ".join(figures if len(values) > 1 else figures[1:]), tone, text + ".")
    return None


def tone_of(change: float, error: float) -> str:
    """A change within two standard errors is none."""
    return "neutral" if abs(change) <= 2 * error else "better" if change > 0 else "worse"


def ends_of(values: Sequence[float]) -> tuple[float, float]:
    tenth = max(1, len(values) // 10)
    return float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))


def warnings_of(run: Run) -> list[str]:
    """What a reader must not overlook."""
    found = []
    for stage in run.stages:
        bad = [e for e in stage.history if any(is_bad(e.get(key)) for key in ("loss", "eval_loss", "grad_norm"))]
        if bad:
            steps = f"{len(bad)} logged steps, first at step {bad[0].get('step')}"
            found.append(f"{stage.name}: the loss or the gradient is not a number at {steps}.")
        if not stage.history:
            found.append(f"{stage.name}: has not logged anything; it may still run, or was stopped early.")
        elif not any("total_flos" in entry for entry in stage.history):
            found.append(f"{stage.name}: not finished; the curves end at its newest checkpoint.")
    return found


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


def measures(run: Run) -> Iterable[Measure]:
    """All evaluation numbers of a run, with standard errors where they can be told."""
    if (found := gain(run)) is not None:
        result = found[0]
        where = f"Answers to {result.n:,} prompts"
        for what, share in (("before", result.before), ("after", result.after)):
            yield Measure(where, f"correct {what}, %", with_error(100 * share, 100 * share_error(share, result.n), 1))
        kind = "paired by prompt" if result.is_paired else "unpaired"
        change = f"{signed(100 * (result.after - result.before), 1)} ± {100 * result.error:.1f}"
        yield Measure(where, f"difference, points ({kind})", change)
    for side in ("before", "after"):
        if run.summary.get(f"mean_length_{side}") is not None:
            where = f"Answers to {run.summary['n']:,} prompts" if run.summary.get("n") else "Answers"
            yield Measure(where, f"mean length {side}, tokens", number(run.summary[f"mean_length_{side}"]))
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
    return f"{value:.{decimals}f}" + (f" ± {error:.{decimals}f}" if error is not None else "")


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


def signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
