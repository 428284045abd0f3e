"""What the report reads: a folder's trainings, scored responses, answers and evaluation numbers (see report.py)."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from reporting.checks import Row, answers_of, check, check_row, is_number, read_json, read_yaml
from reporting.read_data import ScoredData, read_data
from reporting.read_rounds import HELD_OUT, Rounds, read_rounds
from simpo.console import UserError

ITSELF = "training"
STAGE_ORDER = ("base", "sft", "reward")  # the order in which they are trained; all others after them, by name

SUMMARY = ("accuracy_before", "accuracy_after", "n", "mean_length_before", "mean_length_after", "seconds")


@dataclass
class Stage:
    """One training's output_dir."""

    name: str
    """Its place below RUN_DIR, without models/; ITSELF when it is RUN_DIR."""
    settings: Row
    history: list[Row]
    results: Row
    data_report: dict[str, Row]


class Change(NamedTuple):
    """A prompt's answers before and after."""

    prompt: str
    before: str
    after: str
    was_correct: bool | None
    is_correct: bool | None
    expected: str | None
    groups: tuple[str, ...] = ()
    """What the prompt belongs to: answers are counted for each of these apart, too."""


@dataclass
class Comparison:
    """Answers to the same prompts at two moments."""

    before: str
    after: str
    changes: list[Change]

    @property
    def is_graded(self) -> bool:
        grades = [grade for change in self.changes for grade in (change.was_correct, change.is_correct)]
        return bool(grades) and None not in grades


@dataclass
class Run:
    """Everything found for one RUN_DIR."""

    name: str
    stages: list[Stage]
    data: list[ScoredData]
    comparisons: list[Comparison]
    summary: Row
    scores: dict[str, Row]
    """{name of the scores file: {model: its numbers}}."""
    rounds: Rounds | None = None


def read_run(folder: Path, name: str) -> Run:
    """Read what the folder holds.

    Raises:
        UserError: no such folder, nothing in it that the report knows, or a known file that is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    places = list(folders_of(folder))
    stages = [stage for place in places if (stage := read_stage(place, place_name(place, folder)))]
    run = Run(
        name=name,
        stages=sorted(stages, key=stage_order),
        data=[data for place in places for data in read_data(place, place_name(place, folder))],
        comparisons=[*read_answers(folder), *(c for place in places for c in read_generations(place))],
        summary=read_summary(folder / "summary.json"),
        scores=read_scores(folder),
        rounds=read_rounds(folder),
    )
    if not (run.stages or run.data or run.comparisons or run.summary or run.scores):
        raise UserError(
            f"{folder}: holds nothing to report (no training, scored responses, answers or scores; report.py --help "
            "names the files)"
        )
    return run


def folders_of(root: Path) -> Iterator[Path]:
    """The folder and those at most two levels below it, without the trainings' own checkpoints and held-out answers."""
    yield root
    for place in sorted([*root.glob("*"), *root.glob("*/*")], key=lambda path: numbered(path.as_posix())):
        parts = place.relative_to(root).parts
        if place.is_dir() and parts[0] != HELD_OUT and not any(p.startswith(("checkpoint-", ".")) for p in parts):
            yield place


def numbered(name: str) -> str:
    """What sorts round_10 after round_9."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)


def place_name(place: Path, root: Path) -> str:
    name = "" if place == root else place.relative_to(root).as_posix()
    return name.removeprefix("models/").removesuffix("/model")


def stage_order(stage: Stage) -> tuple[int, str]:
    return (STAGE_ORDER.index(stage.name) if stage.name in STAGE_ORDER else len(STAGE_ORDER), numbered(stage.name))


# ---- one kind of file each -----------------------------------------------------------------------------------------


def read_stage(folder: Path, name: str) -> Stage | None:
    """A training's files, or None when the folder is no training's."""
    record, state = folder / "run_config.yaml", folder / "trainer_state.json"
    if not state.is_file():  # written when training ends; an unfinished one has it in its checkpoints
        checkpoints = [p for p in folder.glob("checkpoint-*/trainer_state.json") if p.parent.name[11:].isdigit()]
        state = max(checkpoints, key=lambda p: int(p.parent.name[11:]), default=state)
    if not (record.is_file() or state.is_file()):
        return None
    config = read_yaml(record) if record.is_file() else {}
    history = read_json(state, dict).get("log_history", []) if state.is_file() else []
    check(state, isinstance(history, list) and all(isinstance(entry, dict) for entry in history), "log_history")
    reports = read_json(folder / "data_report.json", dict)
    for split, counts in reports.items():
        check(folder / "data_report.json", isinstance(counts, dict) and all(map(is_number, counts.values())), split)
    identity, settings = config.get("identity") or {}, config.get("settings") or {}
    check(record, isinstance(identity, dict) and isinstance(settings, dict), "identity or settings")
    objective = identity.get("objective")
    return Stage(
        name=name or ITSELF,
        settings=({"objective": objective} if objective else {}) | settings,
        history=history,
        results=read_json(folder / "all_results.json", dict),
        data_report=reports,
    )


def read_answers(folder: Path) -> list[Comparison]:
    """answers_before.json and answers_after.json, matched by prompt; prompts that are only in one are left out."""
    before, after = (answers_of(folder / f"answers_{side}.json") for side in ("before", "after"))
    changes = [
        Change(
            prompt=key[0],
            before=str(row["answer"]),
            after=str(after[key]["answer"]),
            was_correct=row.get("correct"),
            is_correct=after[key].get("correct"),
            expected=after[key].get("expected", row.get("expected")),
            groups=groups_of(row),
        )
        for key, row in before.items()
        if key in after
    ]
    return [Comparison("before", "after", changes)] if changes else []


def groups_of(row: Row) -> tuple[str, ...]:
    """The kind or family of a graded row's prompt, and whether it was trained on."""
    trained = [f"{'' if row['seen'] else 'not '}trained on"] if isinstance(row.get("seen"), bool) else []
    return (*trained, *(row[key] for key in ("kind", "family") if isinstance(row.get(key), str)))


def read_generations(folder: Path) -> list[Comparison]:
    """generations.jsonl (answers while training): those of the first step against those of the last."""
    path = folder / "generations.jsonl"
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            rows.append(check_row(path, number, json.loads(line), "step", "prompt", "generation"))
        except ValueError as error:
            raise UserError(f"{path}, line {number + 1}: not JSON ({error})") from error
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return []
    first, last = ({row["prompt"]: row["generation"] for row in rows if row["step"] == steps[i]} for i in (0, -1))
    changes = [Change(prompt, first[prompt], last[prompt], None, None, None) for prompt in first if prompt in last]
    return [Comparison(f"step {steps[0]}", f"step {steps[-1]}", changes)]


def read_summary(path: Path) -> Row:
    summary = read_json(path, dict)
    for key in SUMMARY:
        check(path, summary.get(key) is None or is_number(summary[key]), key)
    return summary


def read_scores(folder: Path) -> dict[str, Row]:
    """What eval/score.py wrote: scores.json, or any .json in scores/."""
    scores = {}
    for path in [folder / "scores.json", *sorted((folder / "scores").glob("*.json"))]:
        for model, numbers in read_json(path, dict).items():
            check(path, isinstance(numbers, dict), model)
            scores.setdefault(path.stem, {})[model] = numbers
    return scores


def names_of(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart.

    Raises:
        UserError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for same, copies in groupby(sorted(parts)):
        if len(list(copies)) > 1:
            raise UserError(f"{Path(*same)}: given twice")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return ["/".join(own[-length:]) for own in parts]
