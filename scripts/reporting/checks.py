"""Files read with errors that name the file and the row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from simpo.console import UserError

Row = dict[str, Any]


def read_json(path: Path, kind: type) -> Any:
    """The file's content, or an empty `kind` when there is no file.

    Raises:
        UserError: it is not JSON, or of another kind.
    """
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error}); was the file cut off?") from error
    check(path, isinstance(content, kind), f"the content (a {kind.__name__} is expected)")
    return content


def read_yaml(path: Path) -> Row:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML ({error})") from error
    check(path, isinstance(content, dict), "the content (a mapping is expected)")
    return content


def check(path: Path, holds: bool, what: str, number: int | None = None) -> None:
    if not holds:
        raise UserError(f"{path}{'' if number is None else f', row {number}'}: {what} is not in the form expected")


def check_row(path: Path, number: int, row: Any, *fields: str) -> Row:
    if missing := [name for name in fields if not isinstance(row, dict) or name not in row]:
        raise UserError(f"{path}, row {number}: has no field {missing[0]!r}")
    return row


def answers_of(path: Path) -> dict[tuple[str, int], Row]:
    """Rows by prompt, and by how often it came before: prompts may repeat."""
    seen: Counter[str] = Counter()
    rows = {}
    for number, row in enumerate(read_json(path, list)):
        prompt = str(check_row(path, number, row, "prompt", "answer")["prompt"])
        check(path, isinstance(row.get("correct"), bool | None), "correct", number)
        rows[prompt, seen[prompt]] = row
        seen[prompt] += 1
    return rows


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def key_of(row: Row) -> str:
    """A row's prompt as a key, whether it is a text or a list of messages."""
    return json.dumps(row["prompt"], ensure_ascii=False)
