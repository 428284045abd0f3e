"""The replies to what a judge is asked: every one kept in a journal, each asked and paid for once."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

from simpo.chat.thinking import after_thinking, split_thinking
from simpo.folder import Journal
from simpo.judge.client import Judge, Refusal
from simpo.judge.responses import Row
from simpo.judge.tasks import AFTER_THINKING, RULES, Key, Outcome, Reading, Task, find_labels

JOURNAL = "replies.jsonl"
NUMBER = (int, float)
FIELDS = {"question_id": (str, int), "part": int, "attempt": int, "content": str, "failed": str, "time": NUMBER}


def open_journal(folder: Path) -> Journal:
    return Journal(folder, JOURNAL, FIELDS)


def read_replies(folder: Path, keys: Collection[Key]) -> dict[Key, list[Row]]:
    """The replies to these tasks that earlier runs kept, by `Task.key`; those of a task that was begun anew replace the
    ones before."""
    found: dict[Key, list[Row]] = {}
    for row in Journal.read(folder, JOURNAL, FIELDS):
        if (key := (row["question_id"], row["part"])) in keys:
            found[key] = [*(found.get(key, ()) if row["attempt"] > 1 else ()), row]
    return found


class Replies:
    """The replies to some tasks, of earlier runs and of this one.

    A reply's row in the journal is what `Judge.ask` returns with question_id, part, label, attempt (1 begins a task
    anew), time, and failed: empty, or why there is no reply, and whether a filter is the reason (`filtered`).

    Args:
        earlier: what `read_replies` found.
        forget: whether a task with this outcome is asked anew.
    """

    def __init__(
        self,
        tasks: list[Task],
        reading: Reading,
        earlier: dict[Key, list[Row]],
        forget: Callable[[Outcome], bool] = lambda outcome: False,
    ):
        self.tasks, self.reading = tasks, reading
        self.rows: dict[Key, list[Row]] = {task.key: list(earlier.get(task.key, ())) for task in tasks}
        for task in tasks:
            if self.rows[task.key] and self.is_done(task) and forget(self.outcome(task)):
                self.rows[task.key] = []

    def pending(self) -> list[Task]:
        return [task for task in self.tasks if not self.is_done(task)]

    def is_done(self, task: Task) -> bool:
        rows = self.rows[task.key]
        whole = self.whole(rows)
        return (
            any(row["failed"] for row in rows)
            or any(self.decides(row) for row in whole)
            or len(whole) >= self.reading.attempts
            or len(rows) - len(whole) >= 2  # cut, and cut again with more room
        )

    def whole(self, rows: list[Row]) -> list[Row]:
        """The replies that were not cut."""
        replies = [row for row in rows if not row["failed"]]
        return replies if self.reading.may_be_cut else [row for row in replies if row.get("finish_reason") != "length"]

    def decides(self, row: Row) -> bool:
        return not self.reading.patterns or bool(find_labels(heard(row), self.reading.patterns))

    def ask(self, judge: Judge, task: Task, journal: Journal) -> None:
        """Ask for what a task lacks; a reply without a verdict is followed by a request for one.

        Raises:
            Refusal, UserError: see `Judge.ask`.
        """
        rows = self.rows[task.key]
        while not self.is_done(task):
            whole = self.whole(rows)
            messages, was_cut = list(task.messages), len(whole) < len(rows)
            for row in whole:
                messages.append({"role": "assistant", "content": row["content"]})
                messages.append({"role": "user", "content": self.reading.again})
            try:
                reply = judge.ask(messages, more_room=was_cut)
            except Refusal as refusal:
                if was_cut:
                    raise Refusal(f"{cut(rows)}, and more are refused ({refusal})", refusal.filtered) from refusal
                raise
            self.keep(journal, task, reply)

    def keep(self, journal: Journal, task: Task, result: Row) -> None:
        """Append a reply or a failure."""
        rows = self.rows[task.key]
        row = {"question_id": task.question_id, "part": task.part, "label": task.label, "attempt": len(rows) + 1}
        row |= {"content": "", "failed": "", **result, "time": time.time()}
        journal.append(row)
        rows.append(row)

    def outcome(self, task: Task) -> Outcome:
        """What came of a task that is done."""
        rows = self.rows[task.key]
        whole = self.whole(rows)
        failed = next((row["failed"] for row in rows if row["failed"]), None)
        if not failed and not whole:
            failed = cut(rows)
        thinks = any(thought(row) for row in whole)
        rule = AFTER_THINKING if thinks else self.reading.rule
        labels = next((labels for row in whole if (labels := find_labels(heard(row), self.reading.patterns))), [])
        judgment = "\n".join(row["content"] for row in whole)
        return Outcome(RULES[rule](labels) if labels else None, judgment, rule, failed, rows)


def thought(row: Row) -> bool:
    """Whether the judge thought before a reply."""
    return bool(row.get("reasoning")) or split_thinking(row["content"]).thoughts is not None


def heard(row: Row) -> str:
    """The part of a reply in which its verdict is read."""
    return after_thinking(row["content"]) if thought(row) else row["content"]


def cut(rows: list[Row]) -> str:
    limits = [str(row["max_tokens"]) for row in rows if row.get("max_tokens")]
    return f"cut at max_tokens{' ' + ' and '.join(limits) if limits else ''}"
