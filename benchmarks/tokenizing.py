"""Formatting and tokenizing 20,000 pairs of conversations: ours in batches, against TRL's CPOTrainer, row by row.

    python benchmarks/tokenizing.py --out benchmarks/tokenizing.md [--pairs 20000] [--processes 1 2]

CPOTrainer's tokenize_row is the original's. Both sides end with a trainer that could start; the sides take turns, each
in a process of its own (after a fork, the tokenizers library stays with one thread).
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREDICTIONS = """\
The original tokenizes every row in about seven calls and renders it in six; ours renders in three and tokenizes a
thousand rows in one call, in Rust: 5 to 8 times faster with one process, the same with two.
Second prediction, written after profiling and after runs of 5,000 pairs (5.0 and 1.9 times), so no blind one:
4.5 with one process (two threads in Rust), 2 with two. Ours is now bound by the
Rust tokenizer, which both sides need: about 1 ms a pair and core, where a pair takes TRL 3.5 ms in all.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run", nargs=3, metavar=("SIDE", "PROCESSES", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        side, processes, seed = args.run
        print("RESULT", prepare(side, make_rows(args.pairs, int(seed)), int(processes)))
        return
    print(PREDICTIONS, flush=True)
    lines = [
        "# Formatting and tokenizing",
        f"\nMachine: {len(os.sched_getaffinity(0))} cores, {platform.machine()}. Date: {time.strftime('%Y-%m-%d')}. "
        f"{args.pairs:,} pairs, medians (all times in brackets).",
        f"\nPrediction, written before the run:\n\n{PREDICTIONS}",
        "| processes | TRL, row by row | ours | ratio | aim |",
        "|---|---|---|---|---|",
    ]
    for processes in args.processes:
        times: dict[str, list[float]] = {"trl": [], "ours": []}
        for round_ in range(args.rounds):
            for side, seconds in times.items():
                seconds.append(in_own_process(args.pairs, side, processes, seed=10 * processes + round_))
            print(processes, times, flush=True)
        cells = [f"{statistics.median(t):.1f} s ({', '.join(f'{s:.1f}' for s in t)})" for t in times.values()]
        ratio = statistics.median(times["trl"]) / statistics.median(times["ours"])
        lines.append(f"| {processes} | {' | '.join(cells)} | {ratio:.1f} | 5 |")
    report = "\n".join(lines) + "\n"
    print(report)
    if args.out:
        args.out.write_text(report)


def in_own_process(pairs: int, side: str, processes: int, seed: int) -> float:
    command = [sys.executable, __file__, f"--pairs={pairs}", "--run", side, str(processes), str(seed)]
    with tempfile.TemporaryDirectory() as folder:  # nothing from earlier runs
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"HF_DATASETS_CACHE": folder, "TMPDIR": folder}
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    return float(lines[-1].split()[1])


def make_rows(count: int, seed: int) -> list[dict]:
    chance = random.Random(seed)
    words = [" the", " capital", " of", " France", " days", " week", " water", " sky", " seven", "."]

    def message(role: str, length: int) -> dict[str, str]:
        text = "".join(chance.choices(words, k=max(1, int(length * chance.uniform(0.3, 1.7)))))
        return {"role": role, "content": text.strip() or "x"}

    rows = []
    for _ in range(count):
        asked = message("user", 60)
        answers = {"chosen": [asked, message("assistant", 200)], "rejected": [asked, message("assistant", 200)]}
        rows.append(answers)
    return rows


def prepare(side: str, rows: list[dict], processes: int) -> float:
    """Seconds from conversations to a trainer with token ids."""
    from datasets import Dataset, DatasetDict
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from simpo.config import DataArguments
    from simpo.data.pairs import format_pairs
    from simpo_config import SimPOConfig
    from simpo_trainer import SimPOTrainer
    from tiny_models import tiny_model

    folder = Path(tempfile.mkdtemp())
    name = tiny_model(folder / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.eos_token
    data = Dataset.from_list(rows)
    settings = {"output_dir": str(folder / "out"), "max_length": 1024, "use_cpu": True, "report_to": "none"}
    settings |= {"dataset_num_proc": processes, "remove_unused_columns": False}
    start = time.perf_counter()
    if side == "trl":
        args = CPOConfig(**settings, loss_type="simpo", cpo_alpha=0.0)
        trainer = CPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    else:
        pairs = format_pairs(DatasetDict(train=data), tokenizer, DataArguments(preprocessing_num_workers=processes))
        args = SimPOConfig(**settings, max_prompt_length=512)
        trainer = SimPOTrainer(model, args, train_dataset=pairs["train"], processing_class=tokenizer)
    seconds = time.perf_counter() - start
    assert len(trainer.train_dataset) == len(rows)
    return seconds


if __name__ == "__main__":
    main()
