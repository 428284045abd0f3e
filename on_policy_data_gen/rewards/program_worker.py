"""The process in which a reward program runs: `python program_worker.py FILE FUNCTION DESCRIPTOR`.

Reads a line [prompt, responses, row] after the other and writes a line for each to the descriptor: the list that the
function returned (numbers, nulls, and what is neither as text), or a text that says what it did instead. What the
program prints goes to standard error. Imports nothing but the program.
"""

import ctypes
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(path: str, function: str, descriptor: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with annotate, whatever the program does
    sys.stdout.reconfigure(line_buffering=True)  # what was printed before the process is ended is not lost
    with os.fdopen(int(descriptor), "w") as answers:
        try:
            score = load(path, function)
        except Exception as error:
            answers.write(json.dumps(describe(error)) + "\n")
            return
        answers.write('"ready"\n')
        answers.flush()
        for line in sys.stdin:
            answers.write(json.dumps(answer(score, *json.loads(line))) + "\n")
            answers.flush()


def load(path: str, function: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, function)


def answer(score: Callable[..., Any], prompt: Any, responses: list[str], row: dict[str, Any]) -> Any:
    try:
        scores = score(prompt, responses, row)
    except Exception as error:
        return f"raises {describe(error)}"
    try:
        return [plain(value) for value in scores]
    except TypeError:
        return f"returns {type(scores).__name__}, not a list of numbers"


def plain(value: Any) -> Any:
    """None and finite numbers as they are (of other libraries, too), anything else as a text that says what it is."""
    if value is None:
        return None
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    return number if math.isfinite(number) else repr(value)[:40]


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


if __name__ == "__main__":
    main(*sys.argv[1:])
