"""Made-up annotations, judgments and ratings in the official formats, for the tests of score.py."""

import random
from pathlib import Path

import numpy as np

from benchmarks import alpacaeval2 as alpaca_eval2
from benchmarks import arenahard, mt_bench


def judgment(question: str, first: str, second: str, model: str = "mine") -> dict:
    games = [{"user_prompt": "", "judgment": f"[[{verdict}]]", "score": verdict} for verdict in (first, second)]
    return {"question_id": question, "model": model, "judge": arenahard.JUDGE, "games": games}


def annotations(count: int, seed: int = 0, model: str = "mine") -> list[dict]:
    noise = random.Random(seed)
    return [
        {
            "dataset": "made",
            "instruction": f"Question {i}?",
            "output_1": "x" * noise.randint(50, 900),
            "generator_1": alpaca_eval2.BASELINE,
            "output_2": "y" * noise.randint(50, 900),
            "generator_2": model,
            "annotator": alpaca_eval2.ANNOTATOR,
            "preference": 1 + noise.random(),
        }
        for i in range(count)
    ]


def ratings(model: str = "mine", questions: range = mt_bench.QUESTIONS) -> list[dict]:
    return [
        {
            "question_id": number,
            "model": model,
            "judge": ["gpt-4", "single-v1"],
            "judgment": f"Rating: [[{(number + turn) % 10 + 1}]]",
            "score": (number + turn) % 10 + 1,
            "turn": turn,
        }
        for number in questions
        for turn in (1, 2)
    ]


def write_reference_data(folder: Path) -> str:
    """Write df_gamed.csv and instruction_difficulty.csv with made-up numbers."""
    noise = np.random.default_rng(0)
    difficulty = noise.normal(size=alpaca_eval2.QUESTIONS)
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, shift in (("verbose", -1.0), ("concise", 1.0)):
        for i, d in enumerate(difficulty):
            lines.append(f"{model},{i},{noise.random():.6f},{shift + noise.normal():.6f},{d:.6f},False")
    folder.mkdir()
    (folder / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{i},{d:.6f}" for i, d in enumerate(difficulty)]
    (folder / "instruction_difficulty.csv").write_text("index,instruction_difficulty\n" + "\n".join(rows) + "\n")
    return str(folder)
