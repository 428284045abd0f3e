"""From the tasks of a benchmark to their outcomes: every reply kept in a journal, each asked and paid for once."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

from endpoint import CONTINUE, Judge, Refusal
from parts import AFTER_THINKING, RULES, Judging, Outcome, Task, find_labels
from records import Row
from simpo.chat.thinking import after_thinking, split_thinking
from simpo.console import UserError, progress
from simpo.folder import Journal

JOURNAL = "replies.jsonl"
NUMBER = (int, float)
FIELDS = {"question_id": (str, int), "part": int, "attempt": int, "content": str, "failed": str, "time": NUMBER}
MOST_ALONE = 3  # requests that may fail before the first reply: an endpoint that refuses all is not asked 800 times


class Replies:
    """The replies to a benchmark's tasks, of earlier runs and of this one.

    A journal's row is a reply (see `Judge.ask`) with question_id, part, attempt (1 begins a task anew), time, and
    failed: empty, or why there is no reply.

    Args:
        retry_failed: forget the failures of earlier runs.
    """

    def __init__(self, work: Path, judging: Judging, retry_failed: bool = False):
        self.work, self.judging = work, judging
        self.rows: dict[Any, list[Row]] = {task.key: [] for task in judging.tasks}
        for row in Journal.read(work, JOURNAL, FIELDS):
            if (key := (row["question_id"], row["part"])) in self.rows:
                self.rows[key] = [*(self.rows[key] if row["attempt"] > 1 else []), row]
        self.found = any(self.rows.values())
        if retry_failed:
            for task in judging.tasks:
                if self.rows[task.key] and self.is_done(task) and self.outcome(task).failed:
                    self.rows[task.key] = []

    def pending(self) -> list[Task]:
        return [task for task in self.judging.tasks if not self.is_done(task)]

    def is_done(self, task: Task) -> bool:
        rows = self.rows[task.key]
        whole = self.whole(rows)
        return (
            any(row["failed"] for row in rows)
            or any(self.decides(row) for row in whole)
            or len(whole) >= self.judging.attempts
            or len(rows) - len(whole) >= 2  # cut, and cut again with more room
        )

    def whole(self, rows: list[Row]) -> list[Row]:
        """The replies that were not cut."""
        replies = [row for row in rows if not row["failed"]]
        return replies if self.judging.may_be_cut else [row for row in replies if row.get("finish_reason") != "length"]

    def decides(self, row: Row) -> bool:
        return not self.judging.patterns or bool(find_labels(heard(row), self.judging.patterns))

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
                messages.append({"role": "user", "content": self.judging.again})
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
        row = {"question_id": task.question_id, "part": task.part, "attempt": len(rows) + 1}
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
        rule = AFTER_THINKING if thinks else self.judging.rule
        labels = next((labels for row in whole if (labels := find_labels(heard(row), self.judging.patterns))), [])
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


def work_off(judge: Judge, replies: Replies, label: str, started: Callable[[], None]) -> None:
    """Ask for all that is missing, several judgments at a time.

    The first is asked alone, so that what is wrong with the endpoint costs one call. A question that is refused is kept
    as such once another was answered, which shows that it was the question's fault; where none is answered any more,
    the run stops.

    Args:
        started: called after the first reply.

    Raises:
        UserError: the endpoint refuses all, or cannot be reached.
    """
    pending, journal = replies.pending(), Journal(replies.work, JOURNAL, FIELDS)
    proven = any(not row["failed"] for rows in replies.rows.values() for row in rows)  # by an earlier run
    refused: list[tuple[Task, Refusal]] = []  # since the last reply

    def settle() -> None:
        for task, problem in refused:
            replies.keep(journal, task, {"failed": str(problem)})
        refused.clear()

    with progress(len(pending), label, "judgment") as bar:
        answered, most = False, MOST_ALONE
        with closing(finished(judge, replies, journal, spread(pending))) as results:
            for task, problem in results:
                bar.update()
                if problem is None:
                    if not answered:
                        started()
                    answered, most = True, judge.endpoint.concurrency + MOST_ALONE
                    settle()
                    continue
                refused.append((task, problem))
                if problem.filtered and (answered or proven):
                    settle()
                elif sum(not problem.filtered for _, problem in refused) >= most:
                    break
    if refused and (answered or proven) and len(refused) < most:
        settle()
    if refused:
        raise UserError(
            f"{judge.address}: the last {len(refused)} requests got no reply, the first: {refused[0][1]}; mend it "
            f"(--judge, --judge_args, --base_url); {CONTINUE}"
        )


def spread(tasks: list[Task]) -> list[Task]:
    """The tasks with a few from all over the list first, so that the first ones asked are not of one difficult
    question."""
    few = min(MOST_ALONE, len(tasks))
    first = [number * len(tasks) // few for number in range(few)]
    return [tasks[number] for number in [*first, *sorted(set(range(len(tasks))) - set(first))]]


def finished(
    judge: Judge, replies: Replies, journal: Journal, pending: list[Task]
) -> Iterator[tuple[Task, Refusal | None]]:
    """Ask for each task, one at a time until there is a reply, then `concurrency`; yields (task, why there is none)."""

    def ask(task: Task) -> Refusal | None:
        try:
            replies.ask(judge, task, journal)
        except Refusal as refusal:
            return refusal
        return None

    waiting, under_way = iter(pending), {}
    with ThreadPoolExecutor(judge.endpoint.concurrency) as pool:
        at_a_time = 1
        try:
            while True:
                while len(under_way) < at_a_time and (task := next(waiting, None)) is not None:
                    under_way[pool.submit(ask, task)] = task
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    problem = future.result()
                    if problem is None:
                        at_a_time = judge.endpoint.concurrency
                    yield under_way.pop(future), problem
        finally:
            judge.stopped.set()  # nobody waits for a rate limit any more; what is under way is finished and kept
