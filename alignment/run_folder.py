"""Output folders that survive a kill: a lock, a record of the settings, journals of finished work, whole files.

Finished work is appended to a journal as it comes; the final file is written beside its place and renamed. A later run
of the same command reads both and does only what is missing.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .console import UserError

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
        known = json.loads(record.read_text(encoding="utf-8"))
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


def shorten(value: Any, width: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width // 2]}...{text[-width // 2 :]}"


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or nothing: beside its place, then renamed."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=4, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


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


def read_list(path: Path, key: str) -> list[tuple[str, Any]]:
    """Read the list in a .json file, or the lines of a .jsonl file, each with its place ("row 0", "line 1").

    Args:
        key: the setting that named the file, for the messages.

    Raises:
        UserError: no such file, not JSON, or not a list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{key}: there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read: {error}") from error
    place = "the whole file"
    try:
        if path.suffix == ".jsonl":
            items = []
            for number, line in enumerate(text.split("\n"), start=1):
                place = f"line {number}"
                if line.strip():
                    items.append((place, json.loads(line)))
            return items
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{key}: {path}, {place}: not JSON ({error}); was the file cut off?") from error
    if not isinstance(content, list):
        raise UserError(f"{key}: {path}: must hold a list, found {type(content).__name__}")
    return [(f"row {number}", item) for number, item in enumerate(content)]


def read_rows(path: Path, key: str, fields: dict[str, type]) -> list[dict[str, Any]]:
    """Read a list of objects (see `read_list`).

    Args:
        fields: the fields every row must have, and their types.

    Raises:
        UserError: see `read_list`; or a row is no object, lacks a field or has it in another type.
    """
    items = read_list(path, key)
    for place, row in items:
        where = f"{key}: {path}, {place}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object with {', '.join(fields)}")
        for field, kind in fields.items():
            if field not in row:
                raise UserError(f"{where}: has no field {field!r} (found: {', '.join(row)})")
            if not isinstance(row[field], kind):
                raise UserError(f"{where}: {field} is {type(row[field]).__name__}, must be {kind.__name__}")
    return [row for _, row in items]


def weights_digest(model: str) -> str | None:
    """A digest of a model folder's weights that changes when it is trained again; None for a hub name.

    Reads a sample of each safetensors file: its length, its header's start, and 64 KiB from the middle and the end.
    """
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    digest, sample = hashlib.sha256(), 1 << 16
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in (0, max(0, size // 2), max(0, size - sample)):
                file.seek(start)
                digest.update(file.read(sample))
    return digest.hexdigest()[:16] if files else None
