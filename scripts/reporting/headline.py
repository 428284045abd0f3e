"""The first thing on the page: what a run achieved, what became worse, and what to look at with care."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reporting.numbers import (
    METRICS,
    NONE,
    Gain,
    duration,
    gain,
    gains_by_group,
    groups,
    is_bad,
    length,
    number,
    percent,
    points,
    score_measures,
    share_error,
    signed,
)
from reporting.read import ITSELF, Comparison, Run, Stage

# of the groups of prompts, those in the headline; the section on evaluation has all
MOST_NAMED = 4
FEWEST_PROMPTS = 10  # of fewer, all may change alike by chance: a standard error of nothing


class Headline(NamedTuple):
    """What became better (or did not), in a figure and a sentence."""

    figure: str
    tone: str
    """better, worse or neutral."""
    text: str


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


def answers_headline(run: Run, result: Gain, graded: Comparison | None) -> Headline:
    change = result.after - result.before
    tone = tone_of(change, result.error)
    verdict = {"neutral": "No clear change: ", "better": "", "worse": "Worse: "}[tone]
    text = (
        f"{verdict}{signed(percent(change), 1)} points of correct answers "
        f"(standard error {percent(result.error):.1f}) on {result.n:,} prompts"
    )
    if graded:
        found = groups(graded)
        text += f"; {len(found['became right'])} answers became right, {len(found['became wrong'])} became wrong"
    lengths = [run.summary.get(f"mean_length_{side}") for side in ("before", "after")]
    if None not in lengths:
        text += f". Mean length {' → '.join(map(length, lengths))} tokens"
    if run.summary.get("seconds"):
        text += f". Took {duration(run.summary['seconds'])}"
    text += "." + clear_changes(graded)
    return Headline(f"{percent(result.before):.1f} % → {percent(result.after):.1f} %", tone, text)


def clear_changes(graded: Comparison | None) -> str:
    """The groups of prompts that became better or worse by more than two standard errors, the largest change first."""
    gains = gains_by_group(graded) if graded else {}
    gains = {name: own for name, own in gains.items() if own.n >= FEWEST_PROMPTS}
    text = ""
    for tone, order in (("better", list(gains)), ("worse", list(gains)[::-1])):
        found = [name for name in order if tone_of(gains[name].after - gains[name].before, gains[name].error) == tone]
        listed = ", ".join(f"{name} ({gains[name].change})" for name in found[:MOST_NAMED])
        others = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        text += f"\n{tone.capitalize()}: {listed}{others}." if found else ""
    return text


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
