"""The published rows that scores are shown beside (eval/published_results.csv: facts from papers and model cards)."""

import csv
from pathlib import Path
from typing import NamedTuple

from records import Row

TABLE = Path(__file__).parent / "published_results.csv"


class Point(NamedTuple):
    """A published model in the plot."""

    name: str
    length: float
    win_rate: float


def published_rows(columns: dict[str, str]) -> dict[str, Row]:
    """{model: {key of a score: published number}} of the models that have any.

    Args:
        columns: {key of a score: column of the table}.
    """
    rows = {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            values = {key: float(line[column]) for key, column in columns.items() if line[column]}
            if "win_rate" in values:
                rows[line["name"]] = values
    return rows


def published_points(rows: dict[str, Row]) -> list[Point]:
    """The published models whose answer length is known."""
    return [Point(name, row["avg_length"], row["win_rate"]) for name, row in rows.items() if "avg_length" in row]
