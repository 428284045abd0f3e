"""Rows of files (.jsonl, .json, .csv, .parquet, each with .gz too), of folders and of datasets on the hub."""

import csv
import gzip
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simpo.console import UserError
from simpo.files import read_list

SUFFIXES = tuple(suffix + packed for suffix in (".jsonl", ".json", ".csv", ".parquet") for packed in ("", ".gz"))


def read_table(name: str, key: str) -> list[tuple[str, Any]]:
    """The rows of a file, or of DATA:SPLIT (or DATA:SPLIT+SPLIT), where DATA is a folder or a dataset on the hub; each
    with its place.

    Args:
        key: the setting that named it, for the messages.

    Raises:
        UserError: it cannot be read.
    """
    data, colon, splits = name.rpartition(":")
    if Path(name).is_file():
        return read_file(Path(name), key) if name.endswith(SUFFIXES) else read_list(Path(name), key)
    if Path(name).is_dir():
        raise UserError(f"{key}: {name} is a folder: name one of its splits as well ({name}:train), or a file")
    if not colon:
        raise UserError(f"{key}: there is no file {name} (of a dataset, name a split: {name}:train)")
    named = splits.split("+")
    return [
        (place if len(named) == 1 else f"{split}, {place}", row)
        for split in named
        for place, row in numbered(read_split(data, split, key))
    ]


def read_split(name: str, split: str, key: str) -> Any:
    """One split of a folder or of a dataset on the hub, or a file (whatever the split).

    Returns:
        A `datasets.Dataset`, or the list of a file's values.

    Raises:
        UserError: it cannot be read.
    """
    # a folder's file named after the split: the library would read train_prefs.jsonl as the split "train"
    path = next((file for suffix in SUFFIXES if (file := Path(name) / f"{split}{suffix}").is_file()), Path(name))
    if path.is_file():
        return [row for _, row in read_file(path, key)]
    from simpo.data.load import load_split

    return load_split(name, None, split, key=key)


def numbered(rows: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(f"row {number}", row) for number, row in enumerate(rows)]


def read_file(path: Path, key: str) -> list[tuple[str, Any]]:
    """The rows of a file, or its plain strings, each with its place ("row 0", "line 1").

    Raises:
        UserError: another kind of file, or not readable as what its name says.
    """
    name = path.name.removesuffix(".gz")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{key}: {path}: a file must be one of {', '.join(SUFFIXES)}")
    if not name.endswith((".csv", ".parquet")):
        return read_list(path, key)
    try:
        if name.endswith(".csv"):
            return numbered(read_csv(path))
        import pyarrow.parquet

        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return numbered(pyarrow.parquet.read_table(file).to_pylist())
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise UserError(f"{key}: {path} cannot be read: {error}") from error


def read_csv(path: Path) -> list[dict[str, Any]]:
    """A CSV file's rows; every value is text, "NA" and "null" too."""
    csv.field_size_limit(sys.maxsize)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    if bad := [number for number, row in enumerate(rows) if None in row]:
        raise ValueError(f"row {bad[0]} has more fields than the header; texts with commas need quotes")
    return rows
