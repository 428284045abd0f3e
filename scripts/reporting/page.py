"""The report's sections, worked out from what was read, and the page they make (page.html.jinja)."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from reporting import plots
from reporting.headline import warnings_of
from reporting.numbers import METRICS, NONE, evaluation_blocks, groups, number, points
from reporting.read import Change, Run, Stage
from reporting.read_data import ScoredData
from reporting.rounds import mean_and_error, rounds_table, run_headline

BETWEEN_RUNS, BETWEEN_STAGES, OTHERS = "Different between the runs", "Different between the stages", "All others"
SAME_AXIS = ("logps/chosen", "logps/rejected")  # drawn to one scale, so that they compare
# Settings that say what a training was; the others are folded away when they differ nowhere
MAIN_SETTINGS = (
    "objective", "model_name_or_path", "dataset_mixer", "loss_type", "beta", "gamma_beta_ratio", "tau", "delta",
    "alpha", "dpop_lambda", "desirable_weight", "undesirable_weight", "use_wpo_weighting", "sft_weight",
    "label_smoothing", "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "max_prompt_length", "use_peft", "seed",
)  # fmt: skip
PLACES = {"output_dir", "logging_dir", "run_name", "hub_model_id"}  # where a run went always differs and says nothing
# How many of each the page shows
SHOWN = {"became wrong": 12, "became right": 6, "still wrong": 6, "still right": 3, "changed": 12, "unchanged": 3}


class Block(NamedTuple):
    """A part of the settings table."""

    heading: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


class Plot(NamedTuple):
    title: str
    address: str
    text: str
    """What the plot shows, for those who do not see it."""


def render(runs: Sequence[Run]) -> str:
    """The page, with every text from the runs escaped."""
    settings = settings_blocks(runs)
    differing = [key for block in settings if block.heading == BETWEEN_RUNS for key, _ in block.rows]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        names=[run.name for run in runs],
        colours=plots.COLOURS,
        chosen_colour=plots.CHOSEN,
        rejected_colour=plots.REJECTED,
        headlines=[(run.name, run_headline(run), warnings_of(run)) for run in runs],
        rounds=[(run.name, run.rounds, rounds_table(run), round_plots(run)) for run in runs if run.rounds],
        evaluation=evaluation_blocks(runs),
        settings=settings,
        differing=[key for key in differing if key in MAIN_SETTINGS],
        differing_too=len([key for key in differing if key not in MAIN_SETTINGS]),
        curves=curve_sections(runs),
        data=[
            (label(run.name, data.name, runs), data_text(data), data_plots(data))
            for run, data in all_data(runs)
            if data.scores or data.pairs
        ],
        dropped=dropped_rows(runs),
        data_counts=[
            (label(run.name, data.name, runs), [(what, [f"{count:,}"]) for what, count in data.counts.items()])
            for run, data in all_data(runs)
        ],
        comparisons=[
            (run.name, c, [(name, len(found), sample(name, found)) for name, found in groups(c).items() if found])
            for run in runs
            for c in run.comparisons
        ],
    )


def all_data(runs: Sequence[Run]) -> list[tuple[Run, ScoredData]]:
    return [(run, data) for run in runs for data in run.data]


def label(run: str, part: str, runs: Sequence[Run]) -> str:
    """What a part of a run is called: the run's name only matters beside others."""
    return f"{run}: {part}" if len(runs) > 1 else part


# ---- settings ------------------------------------------------------------------------------------------------------


def columns(runs: Sequence[Run]) -> list[tuple[Run, Stage]]:
    """The trainings whose settings are known: the same stage of all runs beside each other."""
    names = dict.fromkeys(stage.name for run in runs for stage in run.stages)
    return [(r, s) for name in names for r in runs for s in r.stages if s.name == name and s.settings]


def column_name(run: Run, stage: Stage, runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return stage.name
    return f"{run.name}: {stage.name}" if any(len(r.stages) > 1 for r in runs) else run.name


def settings_blocks(runs: Sequence[Run]) -> list[Block]:
    """All settings: those that differ between the runs first, then between stages, the main ones, the rest."""
    trainings = columns(runs)
    stages = dict.fromkeys(stage.name for _, stage in trainings)
    same = "The same everywhere" if len(trainings) > 1 else "Main settings"
    blocks: dict[str, list[tuple[str, list[str]]]] = {BETWEEN_RUNS: [], BETWEEN_STAGES: [], same: [], OTHERS: []}
    for key in dict.fromkeys([*MAIN_SETTINGS, *(key for _, stage in trainings for key in stage.settings)]):
        known = [shown(stage.settings[key]) for _, stage in trainings if key in stage.settings]
        if not known or key in PLACES:
            continue
        values = [shown(stage.settings.get(key)) for _, stage in trainings]
        by_stage = [
            {value for value, (_, stage) in zip(values, trainings, strict=True) if stage.name == name}
            for name in stages
        ]
        if any(len(stage_values) > 1 for stage_values in by_stage):
            blocks[BETWEEN_RUNS].append((key, values))
        elif len(set(known)) > 1:
            blocks[BETWEEN_STAGES].append((key, values))
        else:  # one column is enough, even where a stage has no such setting
            blocks[same if key in MAIN_SETTINGS else OTHERS].append((key, known[:1]))
    names = [column_name(run, stage, runs) for run, stage in trainings]
    return [
        Block(heading, names if heading in (BETWEEN_RUNS, BETWEEN_STAGES) else ["Value"], rows)
        for heading, rows in blocks.items()
        if rows
    ]


def shown(value: Any) -> str:
    """A setting as people write it."""
    if value is None or value == "None":  # run_config.yaml has both
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return str(value)


# ---- curves --------------------------------------------------------------------------------------------------------


def curve_sections(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]], list[Plot]]]:
    """(stage, (run, its colour) of those that have it, its plots) for every stage that logged anything."""
    sections = []
    for name in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        own = [(i, run.name, stage) for i, run in enumerate(runs) for stage in run.stages if stage.name == name]
        panels = stage_plots(own)
        if panels:
            sections.append((name, [(run, plots.COLOURS[i]) for i, run, _ in own], panels))
    return sections


def stage_plots(own: Sequence[tuple[int, str, Stage]]) -> list[Plot]:
    """One plot per metric that any of the (number of the run, run, stage) logged."""
    logged = {key.removeprefix("eval_") for *_, stage in own for entry in stage.history for key in entry}
    lengths = [(f"Length: {key}", (key,)) for key in sorted(logged) if "length" in key]
    found = []
    for title, names in [*METRICS, *lengths]:
        if logged.isdisjoint(names):
            continue
        for unit, part in by_unit(own).items() if names[0] in SAME_AXIS else [("", own)]:
            lines = [(plots.COLOURS[i], points(s, names, ""), points(s, names, "eval_")) for i, _, s in part]
            if not any(steps for _, *both in lines for steps, _ in both):
                continue
            limits = common_limits([stage for *_, stage in part]) if names[0] in SAME_AXIS else None
            found.append(Plot(title + unit, plots.curves(lines, limits), curve_text(title + unit, part, lines)))
    return found


def by_unit(own: Sequence[tuple[int, str, Stage]]) -> dict[str, list[tuple[int, str, Stage]]]:
    """The stages by what their log-probabilities are: means per token and sums do not go on one axis."""
    objectives = {stage.settings.get("objective") for *_, stage in own}
    if len(objectives) < 2:
        return {"": list(own)}
    from simpo.objectives import get_objective, objective_names  # with torch, which takes seconds

    found: dict[str, list[tuple[int, str, Stage]]] = {}
    for entry in own:
        name = entry[2].settings.get("objective")
        unit = (
            {"mean": ", mean per token", "sum": ", sum"}[get_objective(name).logps] if name in objective_names() else ""
        )
        found.setdefault(unit, []).append(entry)
    return found


def common_limits(stages: Sequence[Stage]) -> tuple[float, float]:
    values = [v for s in stages for n in SAME_AXIS for prefix in ("", "eval_") for v in points(s, (n,), prefix)[1]]
    space = 0.05 * (max(values) - min(values)) or 1.0
    return min(values) - space, max(values) + space


def curve_text(title: str, own: Sequence[tuple[int, str, Stage]], lines: Sequence[Any]) -> str:
    ends = []
    for (_, run, _), (_, training, evaluation) in zip(own, lines, strict=True):
        for what, (_, values) in (("training", training), ("evaluation", evaluation)):
            if values:
                ends.append(f"{run} {what} {number(values[0])} to {number(values[-1])}")
    return f"{title}: {'; '.join(ends)}"


def round_plots(run: Run) -> list[Plot]:
    """The held-out measures from model to model."""
    found = []
    for title, values, scale in (
        ("Reward of held-out answers", [model.rewards for model in run.rounds.models], 1),
        ("Held-out answers that are correct, %", [model.correct for model in run.rounds.models], 100),
    ):
        means = [(n, *mean) for n, own in enumerate(values) if (mean := mean_and_error(own.values(), scale))]
        if means:
            text = f"{title}: {', '.join(number(mean) for _, mean, _ in means)}"
            found.append(Plot(title, plots.by_round(*zip(*means, strict=True)), text))
    return found


# ---- data ----------------------------------------------------------------------------------------------------------


def data_text(data: ScoredData) -> str:
    if not data.pairs:
        return f"{len(data.scores):,} prompts with scored responses." if data.scores else ""
    margins = [pair.chosen - pair.rejected for pair in data.pairs]
    longer = np.mean([pair.chosen_length > pair.rejected_length for pair in data.pairs])
    chosen, rejected = (np.median([p[i] for p in data.pairs]) for i in (2, 3))
    return (
        f"{len(data.pairs):,} pairs, median margin {number(np.median(margins))}. Median length: chosen {chosen:,.0f}, "
        f"rejected {rejected:,.0f} characters; the chosen response is the longer one in {100 * longer:.0f} % of the "
        "pairs."
    )


def data_plots(data: ScoredData) -> list[Plot]:
    every = [score for scores in data.scores for score in scores]
    chosen, rejected, *lengths = zip(*data.pairs, strict=True) if data.pairs else ((), (), (), ())
    found = []
    if every or chosen:
        text = "Histogram of the scores of all responses, of the chosen and of the rejected"
        found.append(Plot("Reward scores (responses)", plots.score_histogram(every, chosen, rejected), text))
    if chosen:
        margins = [pair.chosen - pair.rejected for pair in data.pairs]
        found.append(
            Plot("Margins (pairs)", plots.margin_histogram(margins), "Histogram of the pairs' score differences")
        )
        text = "Histogram of the lengths of chosen and rejected responses"
        found.append(Plot("Lengths (responses)", plots.length_histogram(*lengths), text))
    return found


def dropped_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(training and split, cells) of every data_report.json: shares are of the rows that came in, or were kept."""
    rows = []
    for run in runs:
        for stage in run.stages:
            for split, report in stage.data_report.items():
                kept, dropped = report.get("rows", 0), ("dropped_identical", "dropped_empty", "dropped_malformed")
                came = kept + sum(report.get(key, 0) for key in dropped)
                cells = [f"{came:,}", *(part(report.get(key, 0), came) for key in dropped), f"{kept:,}"]
                cells += [part(report.get(key, 0), kept) for key in ("prompt_cut", "response_cut")]
                rows.append((f"{column_name(run, stage, runs)}: {split}", cells))
    return rows


def part(count: int, whole: int) -> str:
    return f"{count:,} ({100 * count / whole:.1f} %)" if count and whole else f"{count:,}"


# ---- answers -------------------------------------------------------------------------------------------------------


def sample(name: str, changes: list[Change]) -> list[Change]:
    """A few of a group, always the same ones, in the file's order."""
    count = min(SHOWN[name], len(changes))
    return [changes[i] for i in sorted(random.Random(0).sample(range(len(changes)), count))]
