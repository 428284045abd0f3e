"""Rows with one value changed, at random but always the same, 400 for each reader: each is used, left out, or refused
in one line; none changes what becomes of the rows beside it."""

import json
import random
from pathlib import Path

import pytest
from conftest import make_pairs
from test_eval_mutated import mutated, outcomes

import post_process
from prompts import load_prompts
from simpo.config import DataArguments
from simpo.data.load import get_datasets
from simpo.data.pairs import format_pairs, tokenize_pairs
from simpo.data.tokenize import PairTokenizer

FILES, ROWS = 40, 10


def write_mutated(path: Path, rows: list[dict], noise: random.Random) -> Path:
    """Every second row is as it was."""
    changed = [row for row in rows for row in (row, mutated(row, noise))]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    return path


def test_pairs_to_train_on(tmp_path, tokenizer):
    kept = []

    def load(noise: random.Random) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        rows = make_pairs(ROWS)
        write_mutated(folder / "train.jsonl", rows, noise)
        args = DataArguments(dataset_mixer={str(folder): 1.0}, dataset_splits=["train"])
        texts = format_pairs(get_datasets(args), tokenizer, args)["train"]
        tokens, report = tokenize_pairs(texts, PairTokenizer(tokenizer, 256, 128), "train")
        assert report.rows == len(tokens) >= ROWS  # the sound ones
        whole = {(row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows}
        answers = {
            tuple(row[side].split("\n\n", 1)[1].removesuffix("<|eot_id|>") for side in ("chosen", "rejected"))
            for row in texts
        }
        assert whole <= answers
        kept.append(report.rows)

    assert sum(outcomes(FILES, load)) > FILES // 2
    assert max(kept) > ROWS


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_prompts_to_decode(tmp_path, form):
    def read(noise: random.Random) -> None:
        rows = [{"prompt": f"Ask {i}?", "answer": i} for i in range(ROWS)]
        path = write_mutated(tmp_path / "prompts.jsonl", rows, noise)
        if form == "json":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path = tmp_path / "prompts.json"
            path.write_text(json.dumps(lines))
        assert {row["prompt"] for row in rows} <= set(load_prompts(str(path), "train", "prompt"))

    assert sum(outcomes(FILES, read)) > 0


def test_responses_to_join(tmp_path, monkeypatch):
    def join(noise: random.Random) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for seed in (1, 2):
            rows = [
                {"prompt": f"Ask {i}?", "format_prompt": f"<u>Ask {i}?", "generated_text": f"Answer {i} {seed}"}
                for i in range(ROWS)
            ]
            changed = rows if seed == 1 else [mutated(row, noise) if i % 2 else row for i, row in enumerate(rows)]
            (folder / f"output_{seed}.json").write_text(json.dumps(changed))
        monkeypatch.setattr("sys.argv", ["post_process.py", "--generation_file_dir", str(folder)])
        try:
            post_process.main()
        except SystemExit as stop:
            assert stop.code == 2
            raise UserWarning from stop  # refused
        joined = json.loads((folder / "all_outputs.json").read_text())
        assert {f"Ask {i}?" for i in range(0, ROWS, 2)} <= {row["prompt"] for row in joined}

    joined = []
    for seed in range(FILES):
        try:
            join(random.Random(seed))
            joined.append(True)
        except UserWarning:
            joined.append(False)
    assert any(joined)
