"""The benchmarks' pages: what stands there when a part fails; that both sides train on the same tokens."""

import json

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import gpu
import sides
import train_step

RUN = {
    "step": 0.5, "tokens_per_second": 1000.0, "peak_above_floor_gb": 2.0, "share_of_matmul_rate": 0.4,
    "matmul_gflops": 6e5, "loss": 1.25,
}  # fmt: skip
OUT_OF_MEMORY = {"failed": "torch.OutOfMemoryError: CUDA out of memory."}


def rows_of(page: str) -> dict[tuple[str, ...], list[str]]:
    """The tables' rows by their first two cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {tuple(row[:2]): row[2:] for row in rows}


def test_a_part_that_fails_is_one_row_of_the_page():
    training = {
        ("short", "bfloat16"): {"ours": [RUN], "plain": [OUT_OF_MEMORY], "trl": [RUN | {"step": 1.0}]},
        ("long", "bfloat16"): {"ours": [RUN], "trl": [OUT_OF_MEMORY]},
    }
    speed = {"responses": 10, "tokens": 500, "seconds": {"`LLM.generate`": [2.0, 4.0, 2.0], "ours": [2.5, 2.5, 1.0]}}
    found = {"train_step": training, "gpu": speed, "gpu_parity": {"text": "30 checks"}}
    parts = {part.name: part for part in gpu.PARTS}
    done = [(parts[name], found[parts[name].program], 9.0) for name in ("8B", "decode", "sdpa")]
    done += [(parts[name], {"failed": "ImportError: no | here"}, 1.0) for name in ("annotate", "flash_attention_2")]
    page = gpu.page(["One Card", "torch 1"], done)
    rows = rows_of(page)
    assert rows["8B, short, bfloat16", "ours"][:2] == ["0.5 s", "2.00"]
    assert rows["8B, short, bfloat16", "plain"] == ["failed: torch.OutOfMemoryError: CUDA out of memory.", *[""] * 6]
    assert rows["8B, long, bfloat16", "ours"] == ["0.5 s", "-", "1000", "2.00 GB", "-", "40%", "1.2500"]
    assert rows["8B, long, bfloat16", "trl"][0].startswith("failed: torch.OutOfMemoryError")
    assert rows["decode", "`LLM.generate`"] == ["2 (2, 4, 2)", "5", "250", "1.00"]
    assert rows["decode", "ours"] == ["2.5 (2.5, 2.5, 1)", "4", "200", "0.80"]
    assert rows["annotate", ""] == ["failed: ImportError: no / here", "", "", ""]
    assert "- sdpa: 30 checks\n- flash_attention_2: failed: ImportError: no / here\n" in page
    assert "Machine: One Card." in page and gpu.PREDICTIONS in page
    assert rows["all", str(sum(part.seconds for part in gpu.PARTS))] == ["29"]


def test_all_parts_are_expected_to_take_under_ten_minutes():
    assert sum(part.seconds for part in gpu.PARTS) < 600


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("print('RESULT 1'); print('RESULT {\"a\": 2}'); print('bye')", {"a": 2}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {"failed": "exit status -9"}),
        ("raise SystemExit('further than bf16 explains')", {"failed": "further than bf16 explains"}),
        (
            "import atexit, sys; atexit.register(print, 'bye', file=sys.stderr); 1 / 0",
            {"failed": "ZeroDivisionError: division by zero"},
        ),
        ("import time; time.sleep(600)", {"failed": "not done after 1 s"}),
    ],
)
def test_what_a_process_found_or_why_not(tmp_path, program, found):
    (tmp_path / "program.py").write_text(program)
    assert train_step.found_by([str(tmp_path / "program.py")], limit=1 if "sleep" in program else None) == found


@pytest.mark.parametrize("case", ["short", "wpo"])
def test_both_sides_train_on_the_same_tokens(tmp_path, case):
    args = train_step.arguments(["--hidden=64", "--layers=1", "--vocabulary=512"])
    sides.make_model(args, str(tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_list(sides.make_rows(sides.CASES[case], 8))
    trained = []
    for side in ("ours", "trl"):
        trainer = sides.make_trainer(
            args, side, sides.CASES[case], "float32", str(tmp_path / "model"), train_dataset=rows,
            processing_class=tokenizer, output_dir=str(tmp_path),
        )  # fmt: skip
        trained.append([sequences(row) for row in trainer.train_dataset])
    assert json.dumps(trained[0]) == json.dumps(trained[1])


def sequences(row: dict) -> list[tuple[list[int], int]]:
    """Chosen and rejected: token ids, and how many of them belong to the response."""
    if "chosen_ids" in row:  # TRL's DPOTrainer
        return [(row["prompt_ids"] + row[side], len(row[side])) for side in ("chosen_ids", "rejected_ids")]
    return [
        (row[f"{side}_input_ids"], sum(label != -100 for label in row[f"{side}_labels"]))
        for side in ("chosen", "rejected")
    ]
