"""The published rows that scores are shown beside (eval/published_results.csv: facts from papers and model cards)."""

import csv
from pathlib import Path
from typing import NamedTuple

from alpaca_eval2 import find_file, leaderboard
from records import Row, read_text

TABLE = Path(__file__).parent / "published_results.csv"
# columns of the table to the keys of a score
COLUMNS = {
    "alpacaeval2": {
        "length_controlled_winrate": "alpacaeval2_lc",
        "win_rate": "alpacaeval2_wr",
        "avg_length": "alpacaeval2_length",
    },
    "arenahard": {"win_rate": "arenahard_wr", "avg_length": "arenahard_length"},
    "mt-bench": {},  # no per-model numbers were published for the released models
}


class Point(NamedTuple):
    """A published model in the plot."""

    name: str
    length: float
    win_rate: float


def published_rows(benchmark: str) -> dict[str, Row]:
    """{model: {key of a score: published number}} of the models that have any."""
    rows = {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            values = {key: float(line[column]) for key, column in COLUMNS[benchmark].items() if line[column]}
            if "win_rate" in values:
                rows[line["name"]] = values
    return rows


def published_points(benchmark: str, reference_data: str | None) -> list[Point]:
    """Published models whose answer length is known: AlpacaEval's own leaderboard, the table, and for Arena-Hard a
    leaderboard_*.csv of the benchmark in the folder, if there is one."""
    if benchmark == "alpacaeval2":
        frame = leaderboard().dropna(subset=["length_controlled_winrate"])
        return [Point(str(n), r["avg_length"], r["length_controlled_winrate"]) for n, r in frame.iterrows()]
    rows = published_rows(benchmark).items()
    points = [Point(name, row["avg_length"], row["win_rate"]) for name, row in rows if "avg_length" in row]
    path = find_file(reference_data, "leaderboard*.csv", needed=False) if reference_data else None
    if path is not None:
        lines = csv.DictReader(read_text(path, "Arena-Hard's leaderboard").splitlines())
        points += [Point(line["model"], float(line["avg_tokens"]), float(line["score"])) for line in lines]
    return points
