"""A training beside what is known of the published run whose settings it has."""

from collections.abc import Iterable

from reporting.checks import is_number
from reporting.read import Stage
from simpo.train.published import published_run

MEASURES = [
    ("loss", "eval_loss", 1, "{:.4f}"),
    ("reward accuracy, %", "eval_rewards/accuracies", 100, "{:.1f}"),
    ("reward margin", "eval_rewards/margins", 1, "{:.4f}"),
]


def beside_others(stage: Stage) -> Iterable[tuple[str, str]]:
    """(measure, value) of what others saw; nothing for a run of its own."""
    run = published_run({"dataset_mixer": {}, **stage.settings}, pairs_per_step(stage))
    if run is None:
        return
    yield "settings published as", run.name
    yield "the released model", run.scores
    for what, key, scale, form in MEASURES:
        if key in run.evaluation:
            yield f"{what}: others saw", form.format(scale * run.evaluation[key])
    if run.seen:
        yield "others saw this at", run.seen


def pairs_per_step(stage: Stage) -> float:
    """From the rows, epochs and steps that were made; 0 where they are not known."""
    rows = stage.data_report.get("train", {}).get("rows", 0)
    made = [entry for entry in stage.history if all(is_number(entry.get(name)) for name in ("step", "epoch"))]
    return rows * made[-1]["epoch"] / max(1, made[-1]["step"]) if made else 0.0
