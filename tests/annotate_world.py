"""Candidates on disk and annotate on them, for the tests of reward_model_annotate.py."""

import json
import random
import sys
from pathlib import Path

from reward_model_annotate import main


def write_candidates(path: Path, count: int, seed: int = 0, responses: int = 4) -> Path:
    """Prompts with responses of 1 to 60 words."""
    chance, words = (
        random.Random(seed),
        ["the", "capital", "of", "France", "is", "Paris", "and", "seven", "days", "are", "in", "a", "week"],
    )
    rows = [
        {
            "prompt": f"Question {seed}-{i}: what is {i} plus {i % 7}?",
            "all_generated_responses": [
                " ".join(chance.choices(words, k=chance.randint(1, 60))) for _ in range(responses)
            ],
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def run(monkeypatch, *argv: object, drawn: bool = False) -> None:
    if not drawn:  # the picture takes most of the time
        monkeypatch.setattr("summary.draw", lambda path, *data: path.write_bytes(b"picture"))
    monkeypatch.setattr(sys, "argv", ["reward_model_annotate.py", "--torch_dtype", "float32", *map(str, argv)])
    main()


def read(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / name).read_text())


def asked(row: dict) -> str:
    """The prompt of a training row."""
    return row["prompt"][0]["content"]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps([row if isinstance(row, dict) else {"prompt": row[0]} | row[1] for row in rows]))
    return path


def answers(*responses: object, **more: object) -> dict:
    return {"all_generated_responses": list(responses), **more}
