"""simpo/engine/team.py: work that survives its workers, here and in processes."""

from functools import partial

import pytest
from workers import Doubler

from simpo.console import UserError
from simpo.engine.team import Here, Lost, Processes, dispatch


def groups(first: int, last: int) -> list[list[int]]:
    return [[n, n + 1] for n in range(first, last, 2)]


@pytest.mark.parametrize("count", [1, 3])
def test_everything_is_done_once(count):
    team = Here(Doubler) if count == 1 else Processes(Doubler, [{}] * count)
    results = list(dispatch(team, groups(20, 80)))
    assert sorted((result.item, result.value) for result in results) == [(n, 2 * n) for n in range(20, 80)]


def test_an_item_that_kills_three_workers_is_left_out_and_no_other(capsys):
    results = list(dispatch(Processes(Doubler, [{}] * 2), groups(0, 60)))
    assert sorted(result.item for result in results) == list(range(60))
    assert [result.item for result in results if result.value is None] == [13]
    assert capsys.readouterr().err.count("is lost (its process ended with status -9)") == 3


class TakesLong(Doubler):
    def work(self, items) -> list:
        self.held += items
        return [] if items else super().work(items)


@pytest.mark.parametrize("team", [Here(TakesLong), Processes(TakesLong, [{}] * 2)])
def test_a_worker_that_has_nothing_finished_yet_is_not_lost(team, capsys):
    results = list(dispatch(team, groups(20, 80)))
    assert sorted((result.item, result.value) for result in results) == [(n, 2 * n) for n in range(20, 80)]
    assert not capsys.readouterr().err


class OneAnswer(Doubler):
    def work(self, items) -> list:
        raise Lost("it has had enough") if not items else UserError("it refuses 7")


class NeverReady(Doubler):
    def start(self) -> dict:
        raise UserError("there is no model")


class Loses(Doubler):
    def start(self) -> dict:
        raise Lost("out of memory")


@pytest.mark.parametrize(
    ("make", "words"),
    [(OneAnswer, "it refuses 7"), (NeverReady, "there is no model"), (Loses, "out of memory")],
)
def test_what_ends_the_command(make, words):
    for team in (Here(make), Processes(make, [{}, {}])):
        with pytest.raises(UserError, match=words):
            list(dispatch(team, groups(0, 10)))


class InTurn:
    """Places of which the first one is ready late."""

    count = 3

    def __init__(self, late: int):
        self.late, self.calls, self.workers, self.held = late, {}, {}, {}

    def open(self, member: int) -> None:
        self.workers[member] = Doubler(capacity=100)
        self.calls[member] = self.workers[member].start

    def ask(self, member: int, items: list) -> None:
        assert member not in self.calls
        self.held.setdefault(member, []).append(len(items))
        self.calls[member] = partial(self.workers[member].work, items)

    def answers(self) -> list:
        self.late -= 1
        ready = [member for member in self.calls if member > 0 or self.late < 0]
        return [(member, self.calls.pop(member)()) for member in ready]

    def name(self, member: int) -> str:
        return f"place {member}"

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("late", "comes"), [(5, True), (1000, False)])
def test_a_worker_that_comes_late_gets_its_share_and_one_that_never_comes_holds_nothing(late, comes):
    team = InTurn(late)
    results = list(dispatch(team, groups(100, 160), 20))
    assert sorted(result.item for result in results) == list(range(100, 160)) and team.closed
    assert (0 in team.held) == comes
    assert team.held[1][0] == team.held[2][0] == 20  # no more, although they could hold it
