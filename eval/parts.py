"""What benchmarks, judge.py and score.py hand to each other: questions, paths and judgments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from records import Row
from simpo.judge.tasks import Outcome, Reading, Task


class Question(NamedTuple):
    """One question: its key (question_id; AlpacaEval's instruction itself), the user's turns, and the file's row."""

    key: str | int
    turns: list[str]
    row: Row


class AnswerFiles(NamedTuple):
    """Where one model's answers go."""

    answers: Path
    settings: Path
    work: Path
    """Folder of the lock and the journal."""


class JudgeFiles(NamedTuple):
    """What is judged: paths, and what becomes of thoughts in the answers (see `thoughts.take_off`)."""

    answers: str
    references: str | None
    judge_prompts: str | None
    questions: str | None
    thinking: str = "strip"


class ScoreFiles(NamedTuple):
    """What is scored, and what is read beside it: paths."""

    judgments: str
    questions: str | None = None
    reference_data: str | None = None
    answers: str | None = None


@dataclass(frozen=True)
class Judging:
    """The judgments to get of one model's answers.

    Attributes:
        parameters: of the request: temperature, max_tokens and what else the endpoint's API knows.
        rows: function of ({task key: Outcome}, judge) -> the official judgment rows.
        reading: how a verdict is read.
        judge_name: name of the output's folder, when not the judge's.
    """

    model: str
    tasks: list[Task]
    parameters: Row
    rows: Callable[[dict[Any, Outcome], str], list[Row]]
    reading: Reading = field(default_factory=Reading)
    judge_name: str | None = None
    record: Row = field(default_factory=dict)
    """What more belongs to the record of the settings."""
