"""Workers that share out items: here, in processes of this machine, or over a cluster (cluster.py). One driver.

A worker is an object that one process holds: `start()` gets it ready, `work(items)` takes some more and returns what is
finished. It has one call at a time. The driver alone keeps results, so a worker may be lost at any time: what it had
goes to the others. An item that three workers were lost over is left out; to find the one that is to blame, what was in
a lost worker's hands is tried again by few, and then alone.
"""

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from simpo.console import UserError, warn

TOGETHER = (math.inf, 16, 1)  # items in the hands of one worker, by how many workers were lost over them
LOST_IN_VAIN = 5  # times in a row that a worker is lost without a result, after which it is not started again


class Lost(UserError):
    """A worker has ended. The message says why, as far as it is known."""


class Worker(Protocol):
    """What runs in each place."""

    def start(self) -> dict[str, Any]:
        """Get ready; returns "capacity": items to hold at a time."""

    def work(self, items: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Take more (number, item); return the (number, result) of what is finished, after a while at most."""


class Result(NamedTuple):
    member: int
    """The worker's number in the team."""
    item: Any
    value: Any
    """What `work` returned; None: the item is left out."""


class Team(Protocol):
    """Places for workers, numbered from 0."""

    count: int
    on_gpus: bool

    def open(self, member: int) -> None:
        """Start the worker, again if it was lost. Its answer comes when it is ready."""

    def ask(self, member: int, items: list[tuple[int, Any]]) -> None:
        """Hand more items to a worker that has no call."""

    def answers(self) -> list[tuple[int, Any]]:
        """Wait; then (member, what its call returned, or the UserError or Lost that ended it)."""

    def name(self, member: int) -> str: ...

    def close(self) -> None: ...


class Here:
    """One worker in this process."""

    count = 1

    def __init__(self, make: Callable[[], Worker], on_gpus: bool = False):
        self.make, self.on_gpus = make, on_gpus

    def open(self, member: int) -> None:
        self.worker = self.make()
        self.call = self.worker.start

    def ask(self, member: int, items: list[tuple[int, Any]]) -> None:
        self.call = lambda: self.worker.work(items)

    def answers(self) -> list[tuple[int, Any]]:
        return [(0, outcome_of(self.call))]

    def name(self, member: int) -> str:
        return "engine 0"

    def close(self) -> None:
        """Nothing outlives this process."""


def outcome_of(call: Callable[[], Any]) -> Any:
    """What a call returns, or the UserError that it raises."""
    try:
        return call()
    except UserError as error:
        return error


class Processes:
    """Workers in processes of this machine, which end with this one.

    Args:
        environments: more variables for each; they are there before anything is imported.
    """

    context = multiprocessing.get_context("spawn")

    def __init__(self, make: Callable[[], Worker], environments: Sequence[dict[str, str]], on_gpus: bool = False):
        self.make, self.environments, self.on_gpus = make, environments, on_gpus
        self.count = len(environments)
        self.pipes: dict[int, Connection] = {}
        self.processes: dict[int, multiprocessing.Process] = {}

    def open(self, member: int) -> None:
        self.pipes[member], far = self.context.Pipe()
        before = {name: os.environ.get(name) for name in self.environments[member]}
        os.environ.update(self.environments[member])
        process = self.context.Process(target=serve, args=(far, self.make))
        process.start()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        far.close()
        self.processes[member] = process

    def ask(self, member: int, items: list[tuple[int, Any]]) -> None:
        with suppress(OSError):  # it has ended; its answer says so
            self.pipes[member].send(items)

    def answers(self) -> list[tuple[int, Any]]:
        ready = set(wait(list(self.pipes.values())))
        return [(member, self.receive(member)) for member, pipe in list(self.pipes.items()) if pipe in ready]

    def receive(self, member: int) -> Any:
        try:
            answer = self.pipes[member].recv()
        except (EOFError, OSError):
            answer = None
        if answer is None or isinstance(answer, Exception):
            self.pipes.pop(member).close()
            self.processes[member].join()
        # (an empty answer is one: nothing is finished yet)
        return Lost(f"its process ended with status {self.processes[member].exitcode}") if answer is None else answer

    def name(self, member: int) -> str:
        return f"engine {member}"

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()


def serve(pipe: Connection, make: Callable[[], Worker]) -> None:
    """A worker's own process: answers calls until its parent ends or closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    worker = make()
    answer = outcome_of(worker.start)
    while True:
        pipe.send(answer)
        if isinstance(answer, Exception):
            return
        answer = outcome_of(partial(worker.work, pipe.recv()))


def dispatch(team: Team, groups: Iterable[Sequence[Any]], share: float = math.inf) -> Iterator[Result]:
    """Yield the result of every item as it comes, whatever becomes of the workers.

    Args:
        groups: items; those of a group go to one worker, together.
        share: most items in the hands of one worker, beside its own capacity.

    Raises:
        UserError: of a worker that refuses an item; or the last worker is gone.
    """
    state = Dispatch(team, iter(groups), share)
    try:
        for member in range(team.count):
            team.open(member)
        yield from state.run()
    finally:
        team.close()


class Dispatch:
    """Who has what."""

    def __init__(self, team: Team, groups: Iterator[Sequence[Any]], share: float):
        self.team, self.groups, self.share = team, groups, share
        self.number = 0
        self.tried: tuple[deque, ...] = (deque(), deque(), deque())  # (number, item), by workers lost over it
        self.hands: dict[int, dict[int, Any]] = {member: {} for member in range(team.count)}
        self.level = {member: 0 for member in range(team.count)}  # workers lost over what it has in hand
        self.losses = {member: 0 for member in range(team.count)}  # in a row, without a result
        self.capacity: dict[int, float] = {}
        self.starting, self.parked, self.gone = set(range(team.count)), set(), {}

    def run(self) -> Iterator[Result]:
        while True:
            for member in sorted(self.parked):
                self.refill(member)
            busy = any(self.hands.values())
            if not busy and not self.left():
                return
            if len(self.gone) == self.team.count:
                raise UserError("; ".join(self.gone.values()))
            for member, answer in self.team.answers():
                yield from self.take(member, answer)

    def left(self) -> bool:
        """Whether anything is left that nobody has in hand."""
        if not any(self.tried):
            for group in self.groups:
                self.tried[0].append([(self.number + i, item) for i, item in enumerate(group)])
                self.number += len(group)
                break
        return any(self.tried)

    def refill(self, member: int) -> None:
        """Hand more to a worker that has no call; one that has nothing, and gets nothing, is parked."""
        hand, more = self.hands[member], []
        while self.left():
            level = self.level[member] if hand else next(i for i, queue in enumerate(self.tried) if queue)
            if not self.tried[level]:
                break
            room = min(TOGETHER[level], self.capacity[member], self.share)
            group = self.tried[level][0]
            if hand and len(hand) + len(group) > room:
                break
            self.level[member] = level
            hand.update(self.tried[level].popleft())
            more += group
        if hand:
            self.parked.discard(member)
            self.team.ask(member, more)
        else:
            self.parked.add(member)

    def take(self, member: int, answer: Any) -> Iterator[Result]:
        """What a worker's call came to."""
        if isinstance(answer, Lost):
            yield from self.lost(member, answer)
        elif member in self.starting:
            self.starting.discard(member)
            if isinstance(answer, UserError):
                self.give_up(member, str(answer))
            else:
                self.capacity[member] = answer["capacity"]
                self.refill(member)
        elif isinstance(answer, UserError):
            raise answer
        else:
            for number, value in answer:
                self.losses[member] = 0
                yield Result(member, self.hands[member].pop(number), value)
            self.refill(member)

    def lost(self, member: int, why: Lost) -> Iterator[Result]:
        """Put back what the worker had, less what is to blame; start another one in its place."""
        hand, level = self.hands[member], self.level[member] + 1
        self.hands[member] = {}
        self.losses[member] += 1
        self.starting.discard(member)
        self.parked.discard(member)
        if level == len(self.tried):
            for item in hand.values():
                yield Result(member, item, None)
        else:
            self.tried[level].extend([each] for each in hand.items())
        if self.losses[member] == LOST_IN_VAIN:
            self.give_up(member, str(why))
            return
        back = f"; {len(hand)} items go to others" if hand else ""
        warn(f"{self.team.name(member)} is lost ({why}){back}")
        self.starting.add(member)
        self.team.open(member)

    def give_up(self, member: int, why: str) -> None:
        self.gone[member] = why if self.team.count == 1 else f"{self.team.name(member)}: {why}"
        if len(self.gone) < self.team.count:
            warn(f"{self.gone[member]}; the others go on without it")
