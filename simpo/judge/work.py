"""Ask a judge for all that is missing, several requests at a time; stop where it answers nothing."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing

from simpo.console import UserError
from simpo.folder import Journal
from simpo.judge.client import Judge, Refusal
from simpo.judge.endpoint import CONTINUE
from simpo.judge.replies import Replies
from simpo.judge.tasks import Task

MOST_ALONE = 3  # requests that may fail before the first reply: an endpoint that refuses all is not asked 800 times
MOST_FILTERED = 64  # the same, of requests that a filter refuses, which may be those requests' own fault


def work_off(judge: Judge, replies: Replies, journal: Journal) -> Iterator[Task]:
    """Ask for all that is missing, several tasks at a time; yields each task as its replies are whole, or given up.

    The first is asked alone, so that what is wrong with the endpoint costs one call. A task that is refused is kept
    as such once another was answered, which shows that it was the task's fault; where none is answered any more, the
    run stops.

    Raises:
        UserError: the endpoint refuses all, or cannot be reached.
    """
    proven = any(not row["failed"] for rows in replies.rows.values() for row in rows)  # by an earlier run
    refused: list[tuple[Task, Refusal]] = []  # since the last reply

    def settle() -> Iterator[Task]:
        for task, problem in refused:
            replies.keep(journal, task, {"failed": str(problem), "filtered": problem.filtered})
            yield task
        refused.clear()

    answered = judge.worked
    most = judge.endpoint.concurrency + MOST_ALONE if answered else MOST_ALONE
    with closing(finished(judge, replies, journal, spread(replies.pending()))) as results:
        for task, problem in results:
            if problem is None:
                answered, most = True, judge.endpoint.concurrency + MOST_ALONE
                yield from settle()
                yield task
                continue
            refused.append((task, problem))
            if problem.filtered and (answered or proven):
                yield from settle()
            elif sum(not problem.filtered for _, problem in refused) >= most or len(refused) >= MOST_FILTERED:
                break
    if refused and (answered or proven) and len(refused) < most:
        yield from settle()
    if refused:
        raise UserError(
            f"{judge.address}: the last {len(refused)} requests got no reply, the first: {refused[0][1]}; mend it "
            f"({judge.endpoint.named_by}, --judge_args, --base_url); {CONTINUE}"
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
    judge.stopped.clear()
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
