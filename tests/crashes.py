"""Every place at which a command can be killed, without killing one.

What a killed process leaves is what it had handed to the system: nothing of it is undone, nothing that it still held is
written. So a command runs once, in this process, and its output folder is copied before each file operation in it: a
file opened for writing, a write (`os.write`), a file renamed, removed or cut, a folder made or removed. The file that
was written last is copied a second time with only half of its new content, as a kill or a full disk leaves it; that
covers what libraries write without Python (torch.save, safetensors) and what is still in a buffer. Equal states are
kept once.

    for stop in stops_of(main, folder, tmp_path / "stops"):
        stop.restore()  # the folder as the command left it, killed there
        main()  # the same command
        assert contents(folder) == whole, stop  # nothing lost, nothing twice

`folder` may hold something before, as for a second run; it must be where all output goes that a rerun reads. The
command must end well, and what it asks of others (a model, an endpoint) must be in this process or independent of it.
Paths stay what they were, so settings that name them do too. A fast command matters: each stop costs one run of it.
"""

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# events of sys.addaudithook: positions of the paths among their arguments, and of the folder descriptors they start at
EVENTS = {"open": (0, None), "os.rename": (1, 3), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.mkdir": (0, 2)}


class Stop(NamedTuple):
    """A moment at which the command was killed: `before` says before what."""

    before: str
    copy: Path
    folder: Path

    def restore(self) -> None:
        """Make the folder what it was at that moment."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.copy, self.folder)

    def __str__(self) -> str:
        return f"{self.before} ({self.copy.name})"


def stops_of(command: Callable[[], None], folder: Path, keep: Path) -> list[Stop]:
    """Run the command once; return the states of the folder that a kill could have left.

    Args:
        folder: its output folder; need not be there.
        keep: a folder for the copies, outside of `folder`.
    """
    global _recorder
    recorder = Recorder(folder.resolve(), keep)
    _recorder = recorder
    try:
        with mock.patch("os.write", recorder.write):
            command()
        recorder.stop("its end")
    finally:
        _recorder = None
    return recorder.stops


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """The files below a folder whose relative paths match one of the patterns (default: all), by path."""
    files = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


class Recorder:
    def __init__(self, folder: Path, keep: Path):
        self.folder, self.keep = folder, keep
        self.stops: list[Stop] = []
        self.known = self.state()
        self.whole: set[Path] = set()  # since the last stop: renamed, or written through `write`
        self.lock, self.busy, self.real_write = threading.RLock(), False, os.write

    def state(self) -> dict[Path, tuple[int, int]]:
        """(size, time of the last change) by path; folders as (-1, -1)."""
        found = {}
        for path in self.folder.rglob("*"):
            stat = path.lstat()
            found[path] = (-1, -1) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        return found

    def stop(self, before: str) -> None:
        with self.lock:
            state = self.state()
            if self.busy or (self.stops and state == self.known):
                return
            self.busy = True
            self.copy(before)
            changed = [path for path in state if state[path] != self.known.get(path) and state[path][0] > 1]
            changed = [path for path in changed if path not in self.whole]
            if changed:
                last = max(changed, key=lambda path: state[path][1])
                size, old = state[last][0], self.known.get(last, (0, 0))[0]
                torn = self.copy(f"{before}, with {last.name} torn")
                os.truncate(torn / last.relative_to(self.folder), old + (size - old) // 2 if old < size else size // 2)
            self.known, self.busy = state, False
            self.whole.clear()

    def copy(self, before: str) -> Path:
        copy = self.keep / f"{len(self.stops):03}"
        if self.folder.exists():
            shutil.copytree(self.folder, copy)
        else:
            copy.mkdir(parents=True)
        self.stops.append(Stop(before, copy, self.folder))
        return copy

    def write(self, descriptor: int, content: Any) -> int:
        """os.write in two halves, so that a kill can come between them."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.folder not in path.parents:
            return self.real_write(descriptor, content)
        with self.lock:
            self.stop(f"writing {path.name}")
            half = self.real_write(descriptor, content[: len(content) // 2])
            self.whole.add(path)
            self.stop(f"the second half of a write to {path.name}")
            self.whole.add(path)
            return half + self.real_write(descriptor, content[half:])

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        place, start = EVENTS[name]
        path = args[place]
        if not isinstance(path, str | bytes | os.PathLike) or (name == "open" and not (args[2] or 0) & WRITING):
            return
        path = Path(os.fsdecode(path))
        if start is not None and args[start] not in (-1, None) and not path.is_absolute():
            path = Path(os.readlink(f"/proc/self/fd/{args[start]}")) / path
        path = Path(os.path.abspath(path))
        if path == self.folder or self.folder in path.parents:
            self.stop(f"{name} {path.relative_to(self.folder)}")
            if name == "os.rename":
                self.whole.add(path)


_recorder: Recorder | None = None


def _hook(name: str, args: tuple[Any, ...]) -> None:
    if _recorder is not None and name in EVENTS:
        _recorder.event(name, args)


sys.addaudithook(_hook)  # once and for all: a hook cannot be removed
