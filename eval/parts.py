"""What benchmarks, judge.py and score.py hand to each other: questions, paths, judgments and what came of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from records import Row


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


class Task(NamedTuple):
    """One judgment to get. `part` tells a question's judgments apart: Arena-Hard's game, MT-Bench's turn."""

    question_id: str | int
    part: int
    messages: list[dict[str, str]]
    label: str = ""

    @property
    def key(self) -> tuple[str | int, int]:
        return self.question_id, self.part


class Outcome(NamedTuple):
    """What came of a task."""

    verdict: Any
    """None: none was given."""
    judgment: str
    """The judge's words."""
    rule: str
    """How the verdict was read: see RULES."""
    failed: str | None
    """Why there is no whole reply."""
    replies: list[Row]


AFTER_THINKING = "last after thinking"
RULES: dict[str, Callable[[list[str]], str | None]] = {
    "first": lambda labels: labels[0],
    "last": lambda labels: labels[-1],
    "all agree": lambda labels: labels[0] if len(set(labels)) == 1 else None,
    AFTER_THINKING: lambda labels: labels[-1],  # of a judge that thinks, in what it says after its thoughts
}


def find_labels(text: str, patterns: tuple[str, ...]) -> list[str]:
    """All matches of the first pattern that has any, in order."""
    return next((found for pattern in patterns if (found := re.findall(pattern, text))), [])


@dataclass(frozen=True)
class Judging:
    """The judgments to get of one model's answers.

    Attributes:
        parameters: of the request: temperature, max_tokens and what else the endpoint's API knows.
        patterns: how a verdict looks in the judge's words; none: every whole reply is one.
        rule: which of several verdicts counts (see RULES); of a judge that thinks, the last after its thoughts.
        attempts: how often to ask, at most, for a verdict that a whole reply lacks; `again` is what is asked.
        may_be_cut: a reply that max_tokens cut is whole, as where only the first token counts.
        judge_name: name of the output's folder, when not the judge's.
        rows: function of ({task key: Outcome}, judge) -> the official judgment rows.
    """

    model: str
    tasks: list[Task]
    parameters: Row
    rows: Callable[[dict[Any, Outcome], str], list[Row]]
    patterns: tuple[str, ...] = ()
    rule: str = "first"
    attempts: int = 1
    again: str = ""
    may_be_cut: bool = False
    judge_name: str | None = None
    record: Row = field(default_factory=dict)
    """What more belongs to the record of the settings."""
