"""A worker for tests of teams, in a file that other processes can import."""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any


class Doubler:
    """Doubles numbers, two in a call; 13 kills its process.

    Args:
        capacity: numbers to hold.
        pause: seconds that a call takes.
    """

    def __init__(self, capacity: int = 6, pause: float = 0):
        self.capacity, self.pause, self.held = capacity, pause, []

    def start(self) -> dict[str, Any]:
        return {"capacity": self.capacity}

    def work(self, items: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        self.held += items
        assert len(self.held) <= self.capacity
        if any(item == 13 for _, item in self.held):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        done, self.held = self.held[:2], self.held[2:]
        return [(number, 2 * item) for number, item in done]
