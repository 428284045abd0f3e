"""decode.py's command line, prompts and output, for its tests."""

import random
import sys
from pathlib import Path

from conftest import ROOT, write_jsonl

DECODE = str(ROOT / "on_policy_data_gen" / "decode.py")
SEEDS = [13, 21, 42, 79, 100]
PROMPTS = [f"What is {i} plus {i % 7}?" + " Please think about it." * (i % 4) for i in range(30)]
TOO_LONG = "Why is that so? " * 100

TURNS = [
    {"role": "system", "content": "Be brief.", "weight": 1},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who are you?"},
]


def write_prompts(folder: Path) -> str:
    """A file of all of them, in no order."""
    rows = [{"prompt": prompt} for prompt in [*PROMPTS, TOO_LONG]]
    random.Random(0).shuffle(rows)
    return str(write_jsonl(folder / "prompts.jsonl", rows))


def command(llama: str, prompt_file: str, folder: Path, *seeds: int) -> list[str]:
    settings = ["--max_tokens", "160", "--max_model_len", "512", "--dtype", "float32"]
    names = ["--model", llama, "--data_dir", prompt_file, "--output_dir", str(folder)]
    return [sys.executable, DECODE, *names, *settings, "--seed", *map(str, seeds or SEEDS)]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("output_*.json")}
