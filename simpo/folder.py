"""Output folders that survive a kill: a lock, a record of the settings, journals of finished work.

Finished work is appended to a journal as it comes; the final file is written beside its place and renamed. A later run
of the same command reads both and does only what is missing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from simpo.console import UserError
from simpo.files import write_json

JOURNALS = "journal"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder and hold it; the lock goes with the process, however that ends.

    Raises:
        UserError: another run holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"{folder}: another run is writing to this folder; wait for it, or choose another") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()


def check_settings(record: Path, settings: dict[str, Any], has_output: bool) -> None:
    """Record what a folder's output is made with; refuse to continue it with anything else.

    Args:
        record: the JSON file of the record.
        settings: JSON values.
        has_output: whether the folder holds anything that the recorded settings made.

    Raises:
        UserError: the earlier output was made with other settings; names each.
    """
    if has_output:
        if not record.is_file():
            raise UserError(f"{record.parent}: holds output without a record of how it was made; choose another folder")
        known = recorded_settings(record)
        changed = [
            f"{key} was {shorten(known.get(key))}, now {shorten(settings.get(key))}"
            for key in sorted(known.keys() | settings.keys())
            if known.get(key) != settings.get(key)
        ]
        if changed:
            raise UserError(
                f"{record.parent}: holds output of other settings ({'; '.join(changed)}); choose another folder or "
                "remove it"
            )
    write_json(record, settings)


def recorded_settings(record: Path) -> dict[str, Any]:
    """What `check_settings` recorded; nothing where there is no record."""
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def shorten(value: Any, width: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width // 2]}...{text[-width // 2 :]}"


class Journal:
    """Appends JSON lines to a file in folder/journal; a line is on its way to the disk when `append` returns."""

    def __init__(self, folder: Path, name: str):
        path = folder / JOURNALS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self.file = path.open("ab", buffering=0)  # one write per call: a killed process loses at most that line

    def append(self, *records: dict[str, Any]) -> None:
        self.file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())

    @staticmethod
    def read(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
        """All whole records of the folder's journals whose names match the pattern."""
        for path in sorted((folder / JOURNALS).glob(pattern)):
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    @staticmethod
    def remove(folder: Path, pattern: str) -> None:
        for path in (folder / JOURNALS).glob(pattern):
            path.unlink()


def cut_torn_line(path: Path) -> None:
    """Remove what a killed process left behind the last whole line."""
    if path.is_file():
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
