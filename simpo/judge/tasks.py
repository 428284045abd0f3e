"""What a judge is asked, how its verdict is read in its words, and what came of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from simpo.judge.responses import Row

Key = tuple[str | int, int]


class Task(NamedTuple):
    """One judgment to get. `part` tells a question's judgments apart: Arena-Hard's game, MT-Bench's turn."""

    question_id: str | int
    part: int
    messages: list[dict[str, str]]
    label: str = ""

    @property
    def key(self) -> Key:
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
class Reading:
    """How the verdict is read in the judge's words.

    Attributes:
        patterns: how a verdict looks, the first one that occurs counts; none: every whole reply is one.
        rule: which of several verdicts counts (see RULES); of a judge that thinks, the last after its thoughts.
        attempts: how often to ask, at most, for a verdict that a whole reply lacks; `again` is what is asked.
        may_be_cut: a reply that max_tokens cut is whole, as where only the first token counts.
    """

    patterns: tuple[str, ...] = ()
    rule: str = "first"
    attempts: int = 1
    again: str = ""
    may_be_cut: bool = False


def without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation whose system message, at its start, stands at the beginning of the user's first."""
    if messages[0]["role"] != "system":
        return messages
    system, user, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
