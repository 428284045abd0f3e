"""The one reader of rows, the one writer of whole files, and digests of what a later run depends on.

What is written here is whole or not there, and on the disk; what comes back torn is set aside, never deleted.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import xxhash

from simpo.console import UserError, warn


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk does while `path` is written into one line that names it.

    Raises:
        UserError: no room, no permission, ...
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be written: {error.strerror or error}; "
            "mend that and run the same command again"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that appears whole or not at all: written beside its place, on the disk, then renamed.

    Raises:
        UserError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # half a character outside the basic plane, which models do write, becomes JSON's own \\udXXX
            with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
                yield file
            put_in_place(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


def put_in_place(beside: Path, path: Path) -> None:
    """Rename a finished file to its place, both on the disk; a folder that stands there is set aside."""
    if path.is_dir():
        set_aside(path, "is a folder")
    flush_to_disk(beside)
    beside.replace(path)
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or nothing (see `whole_file`)."""
    with whole_file(path) as file:
        json.dump(content, file, indent=4, ensure_ascii=False)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a whole .jsonl file or nothing (see `whole_file`)."""
    with whole_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def set_aside(path: Path, flaw: str) -> None:
    """Move what cannot be used out of its place, to NAME.broken beside it, and say so; it is never deleted."""
    aside, number = path.with_name(f"{path.name}.broken"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.broken{number}")
    with writing(path):
        path.rename(aside)
    warn(f"{path}: {flaw}; moved to {aside.name}")


def read_own(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any] | None:
    """A mapping that the project wrote itself; None when there is none, or one that cannot be read: it is set aside.

    Args:
        parse: turns the text into the mapping; a ValueError of its means that the text is torn.
    """
    try:
        content = parse(path.read_text(encoding="utf-8"))
        flaw = "does not hold what it should"
    except FileNotFoundError:
        return None
    except OSError as error:
        content, flaw = None, f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        content, flaw = None, "is torn"
    if isinstance(content, dict):
        return content
    set_aside(path, flaw)
    return None


def parse_row(line: str | bytes, fields: dict[str, type]) -> dict[str, Any] | None:
    """The row in a line that the project wrote itself; None when it is torn, or lacks a field or its type."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and all(isinstance(row.get(k), kind) for k, kind in fields.items()) else None


def read_own_rows(path: Path, fields: dict[str, type]) -> list[dict[str, Any]]:
    """The rows of a .jsonl file that the project wrote itself; none where there is none. Of a torn file, which is set
    aside, the whole ones.
    """
    try:
        rows = [parse_row(line, fields) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except OSError as error:
        set_aside(path, f"cannot be read ({error.strerror})")
        return []
    if None in rows:
        set_aside(path, f"{rows.count(None)} broken lines")
    return [row for row in rows if row is not None]


def read_text(path: Path, key: str) -> str:
    """The text of a file the user names. A byte-order mark and .gz after the name are fine.

    Args:
        key: the setting that named the file, or what it should hold, for the messages.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"{key}: there is no file {path}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read: {error}") from error


def read_list(path: Path, key: str) -> list[tuple[str, Any]]:
    """Read a file that holds a list, or one value a line, each with its place ("row 0", "line 1").

    Args:
        key: as for `read_text`.

    Raises:
        UserError: no such file, not JSON, or not a list.
    """
    text = read_text(path, key)
    place = "the whole file"
    try:
        if holds_lines(path, text):
            items = []
            for number, line in enumerate(text.split("\n"), start=1):
                place = f"line {number}"
                if line.strip():
                    items.append((place, json.loads(line)))
            return items
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path}, {place}: not JSON ({error}); was the file cut off?") from error
    if not isinstance(content, list):
        raise UserError(f"{key}: {path}: must hold a list, found {type(content).__name__}")
    return [(f"row {number}", item) for number, item in enumerate(content)]


def holds_lines(path: Path, text: str) -> bool:
    """Whether each line is a value: .jsonl says so, unless a list begins; in any other file, if the first of several
    lines is an object."""
    start = text.lstrip()
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return not start.startswith("[")
    first, _, rest = start.partition("\n")
    return bool(rest.strip()) and first.startswith("{") and first.rstrip().endswith("}")


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


def content_digest(path: Path) -> str:
    """A digest of all of a file's bytes that finds torn files, not forgers: XXH3, as fast as memory is read."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
