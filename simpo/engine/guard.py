"""Ends an engine's processes when the process that started it has ended, however it ended.

vLLM runs an engine in processes of its own. They notice nothing when their parent is killed, and keep the GPU's memory.
A watcher, started beside them, kills what carries the mark of the engine's environment. Linux only, as vLLM is.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

MARK = "SIMPO_ENGINE"
TRACKER = b"multiprocessing.resource_tracker"  # removes shared memory that the others leave, then ends by itself
_watchers: dict[int, subprocess.Popen] = {}  # by the process that is watched: a fork has none yet


def end_with_this_process() -> None:
    """Let everything that this process starts from now on end with it.

    A child that is forked, and starts no program of its own, is not found.
    """
    if os.getpid() in _watchers:
        return
    os.environ[MARK] = uuid.uuid4().hex
    # not isolated from a launcher's signals, it would go first; with an environment, it would find itself
    _watchers[os.getpid()] = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), os.environ[MARK]],
        env={},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def watch(parent: int, mark: str) -> None:
    """Wait until the parent has ended; then kill what has the mark, until nothing has it."""
    while os.getppid() == parent:
        time.sleep(0.2)
    while found := marked(f"{MARK}={mark}".encode()):
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def marked(variable: bytes) -> list[int]:
    """Processes with this in the environment that they were started with. A dead one's is empty."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            carries = variable in (folder / "environ").read_bytes().split(b"\0")
            if carries and TRACKER not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
