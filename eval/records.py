"""Reading the benchmarks' own files: JSON lists and JSON lines, gzipped or not, with errors that name file and row."""

import gzip
import json
import re
import zlib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from simpo.console import UserError

Row = dict[str, Any]
SURROGATE = re.compile("[\ud800-\udfff]")

# Fields that tell the benchmarks' files apart, the most specific first.
KINDS: dict[str, set[str]] = {
    "AlpacaEval annotations": {"instruction", "output_1", "output_2", "preference"},
    "AlpacaEval model outputs": {"instruction", "output"},
    "AlpacaEval instructions": {"instruction"},
    "Arena-Hard judgments": {"question_id", "games"},
    "Arena-Hard battles": {"question_id", "model_a", "model_b", "winner"},
    "MT-Bench judgments": {"question_id", "judgment", "turn"},
    "Arena-Hard or MT-Bench answers": {"question_id", "choices"},
    "Arena-Hard answers": {"uid", "model", "messages"},
    "Arena-Hard judgments of today": {"uid", "model", "games"},
    "Arena-Hard questions of today": {"uid", "prompt"},
    "Arena-Hard questions": {"question_id", "cluster", "turns"},
    "MT-Bench questions": {"question_id", "category", "turns"},
    "MT-Bench judge prompts": {"name", "type", "prompt_template"},
}


def kind_of(row: Any) -> str:
    """What file a row comes from, as far as its fields tell."""
    fields = set(row) if isinstance(row, dict) else set()
    return next((kind for kind, needed in KINDS.items() if needed <= fields), "another kind of file")


def read_rows(path: str | Path, fields: dict[str, type | tuple[type, ...]], what: str) -> list[Row]:
    """Read the objects of a .json list or of .jsonl lines, either gzipped.

    Args:
        fields: the fields that every row must have, and their types.
        what: what the file should hold, such as "Arena-Hard answers", for the messages.

    Raises:
        UserError: no such file, not JSON, empty, of another benchmark, or a row without a field; names file and row.
    """
    items = read_items(Path(path), what)
    if not items:
        raise UserError(f"{path}: holds no rows; expected {what}")
    for place, row in items:
        missing = [field for field in fields if not isinstance(row, dict) or field not in row]
        if missing and place == items[0][0]:
            raise UserError(f"{path}: holds {kind_of(row)}, not {what} (no field {missing[0]!r})")
        if missing:
            raise UserError(f"{path}, {place}: has no field {missing[0]!r}, which {what} have")
        for field, kind in fields.items():
            if not isinstance(row[field], kind) or (isinstance(row[field], bool) and kind is not bool):
                raise UserError(f"{path}, {place}: {field} must not be {json.dumps(row[field])[:60]}")
    return [row for _, row in items]


def read_items(path: Path, what: str) -> list[tuple[str, Any]]:
    """The items of a file, each with its place ("row 3", "line 4").

    Raises:
        UserError: no such file, or not JSON; names the line.
    """
    text = read_text(path, what)
    if text.lstrip()[:1] == "[":
        return [(f"row {number}", item) for number, item in enumerate(parse(text, f"{path}, the list"))]
    lines = enumerate(text.split("\n"), start=1)
    return [(f"line {number}", parse(line, f"{path}, line {number}")) for number, line in lines if line.strip()]


def parse(text: str, where: str) -> Any:
    """A JSON value; half a character (a lone surrogate), which nothing can print or write, becomes the sign for it."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            value = json.loads(SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
        return value
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); was the file cut off?") from error
    except RecursionError as error:
        raise UserError(f"{where}: lists within lists, too deep to be read") from error


def read_text(path: Path, what: str) -> str:
    """The text of a file, unpacked when its name ends in .gz.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected {what}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {what}: {error}") from error


def refuse_repeats(path: str | Path, keys: Iterable[Hashable], name: str = "question {}") -> None:
    """Raise a UserError that names the first key that comes twice, in the words of `name`."""
    seen: set[Hashable] = set()
    for number, key in enumerate(keys):
        if key in seen:
            raise UserError(f"{path}, row {number}: {shorten(name.format(key))} comes twice; remove one")
        seen.add(key)


def refuse_gaps(
    path: str | Path, found: Iterable[Hashable], expected: Iterable[Hashable], remedy: str, more: bool = False
) -> None:
    """Raise a UserError that names the first expected key that is missing, or (unless `more` is allowed) the first
    that nobody expects."""
    found, expected = dict.fromkeys(found), dict.fromkeys(expected)
    missing, strange = [key for key in expected if key not in found], [key for key in found if key not in expected]
    if strange and not more:
        raise UserError(f"{path}: {shorten(str(strange[0]))} is not among the benchmark's questions; {remedy}")
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(expected)} questions are missing, first {shorten(str(missing[0]))}; "
            f"{remedy}"
        )


def shorten(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def find_file(folder: str, pattern: str, needed: bool = True) -> Path | None:
    """The one file of a folder whose name fits the pattern.

    Raises:
        UserError: no such folder, several files fit, or none although it is needed.
    """
    if not Path(folder).is_dir():
        raise UserError(f"reference_data: there is no folder {folder}")
    found = sorted(Path(folder).glob(pattern))
    if len(found) > 1:
        raise UserError(f"reference_data: {folder} holds several files {pattern}: keep one")
    if needed and not found:
        raise UserError(f"reference_data: {folder} holds no file {pattern}")
    return found[0] if found else None
