"""The one reader of rows, the one writer of whole files, and the digest of a model's files."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from simpo.console import UserError


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or nothing: beside its place, then renamed."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=4, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


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
