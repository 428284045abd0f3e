"""Scores from a program of the user's: any function in a Python file, such as a checker of answers.

    --reward_model path/to/file.py:function      function(prompt, responses, row) -> a list of numbers, None: no score

`prompt` is a text, or a list of messages; `responses` are texts; `row` holds the other columns of the prompt's row. It
runs once for each prompt, in a process of its own (see program_worker.py), which may print, fail, hang or crash.
"""

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from conversations import Prompt, to_json
from rewards.base import CannotScore, Options, Outcome, RewardSource, Unit
from simpo.console import UserError

WORKER = Path(__file__).with_name("program_worker.py")
START = 300  # seconds for the file's own imports


class Program(RewardSource):
    """A function in a file. Its scores belong to the file's content: what an edited file would say is asked again."""

    name = "program"

    def __init__(self, argument: str, options: Options):
        super().__init__(argument, options)
        path, _, self.function = argument.rpartition(":")
        self.path = Path(path)
        try:
            source = self.path.read_bytes()
            names = defined_names(ast.parse(source, filename=path))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"reward_model: {path} cannot be read: {error}") from error
        if self.function not in names:
            found = f"it has {', '.join(sorted(names))}" if names else "it has none"
            raise UserError(f"reward_model: {path} has no function {self.function!r} ({found})")
        self.digest = hashlib.sha256(source).hexdigest()[:16]
        self.worker: Worker | None = None

    @classmethod
    def recognizes(cls, name: str) -> bool:
        return re.fullmatch(r".+\.py:\w+", name) is not None

    def revision(self) -> str:
        return self.digest

    def load(self, device: Any, dtype: Any) -> None:
        self.worker = Worker(self.path, self.function)

    def units(self, prompt: Prompt, responses: Sequence[str], columns: dict[str, Any] | None = None) -> list[Unit]:
        asked = (tuple(responses), json.dumps(columns or {}, ensure_ascii=False, sort_keys=True), self.digest)
        return [(prompt, response, number, *asked) for number, response in enumerate(responses)]

    def score_batches(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool] = lambda unit: False
    ) -> Iterator[list[tuple[Unit, Outcome]]]:
        """One call, and one list, for each prompt."""
        calls: dict[tuple[Any, ...], list[Unit]] = {}
        for unit in dict.fromkeys(units):
            if not is_done(unit):
                calls.setdefault((unit[0], *unit[3:5]), []).append(unit)
        for (prompt, responses, columns), asked in calls.items():
            try:
                scores = self.worker.ask(to_json(prompt), list(responses), json.loads(columns), self.options.time_limit)
                yield [(unit, outcome_of(scores[unit[2]])) for unit in asked]
            except CannotScore as error:
                yield [(unit, Outcome(None, str(error))) for unit in asked]


def defined_names(module: ast.Module) -> set[str]:
    """What a file defines or imports at its top level and could be a function."""
    names = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def outcome_of(score: Any) -> Outcome:
    """What the program says of one response; JSON has turned NaN and what is no number into text."""
    if score is None:
        return Outcome(None, "the program gives it no score")
    if isinstance(score, int | float):
        return Outcome(float(score))
    return Outcome(None, f"the program gives it {score}, not a finite number")


class Worker:
    """The process in which the function runs; started again when it was lost.

    Raises:
        UserError: the file cannot be imported.
    """

    def __init__(self, path: Path, function: str):
        # the program's own folder is searched for modules, as if it had been started, and this one is not (-P)
        self.command = [sys.executable, "-P", str(WORKER), str(path.resolve()), function]
        folders = [str(path.resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        read, write = os.pipe()
        # a group of its own, so that what it starts ends with it; the answers come apart from what it prints
        self.process = subprocess.Popen(
            [*self.command, str(write)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=2,
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        self.answers, self.rest = read, b""
        try:
            ready = self.receive(START)
        except CannotScore as error:
            raise UserError(f"reward_model: {self.command[3]}: while it is imported, {error}") from error
        if ready != "ready":
            raise UserError(f"reward_model: {self.command[3]} cannot be imported: {ready}")

    def ask(self, prompt: Any, responses: list[str], row: dict[str, Any], time_limit: float) -> list[Any]:
        """One number, None or a text (what came instead) for each response.

        Raises:
            CannotScore: the function raised, took too long, ended the process, or returned something else.
        """
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps([prompt, responses, row]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            raise CannotScore("the program's process had ended") from None
        answer = self.receive(time_limit)
        if not isinstance(answer, list):
            raise CannotScore(f"the program {answer}")
        if len(answer) != len(responses):
            raise CannotScore(f"the program returns {len(answer)} scores for {len(responses)} responses")
        return answer

    def receive(self, time_limit: float) -> Any:
        """The next line of the worker's answers."""
        with DefaultSelector() as selector:
            selector.register(self.answers, EVENT_READ)
            while b"\n" not in self.rest:
                if not selector.select(time_limit):
                    self.stop()
                    raise CannotScore(f"the program takes more than {time_limit:g} seconds (--time_limit)")
                block = os.read(self.answers, 1 << 16)
                if not block:
                    with suppress(subprocess.TimeoutExpired):
                        self.process.wait(5)
                    status = self.stop()
                    raise CannotScore(f"the program ends its process (status {status})")
                self.rest += block
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def stop(self) -> int:
        """End the process and all that it started; returns its status."""
        status = self.process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()
        os.close(self.answers)
        ended, self.process = self.process, None
        return ended.returncode if status is None else status


SOURCE = Program
