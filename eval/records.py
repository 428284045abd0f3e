"""The benchmarks' own files: which one is it, does every row have its fields, are all questions there."""

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from simpo.console import UserError
from simpo.files import read_list
from simpo.judge.responses import Row, mended, shorten

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
    """The items of a file, each with its place ("row 3", "line 4"), see `read_list`.

    Half a character (a lone surrogate), which no tokenizer takes, becomes the sign for it.
    """
    return [(place, mended(item)) for place, item in read_list(path, what)]


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
