"""Time and memory of a training step: ours, our slower paths, and TRL's CPOTrainer (SimPO) and DPOTrainer (DPO, WPO).

    python benchmarks/train_step.py --out benchmarks/train_step.md [--rounds 1] [--steps 4] [--cases short dpo]

Every side of a case trains the same model on the same tokens in a process of its own; the sides take turns. Prints a
Markdown report with the prediction written before the run; a side that fails is a row of it. --device cuda and the size
options serve GPU machines (gpu.py).
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides import CASES, SIDES, make_model, train

Results = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]
"""What `train` returned in each round, by case and dtype, and side; {"failed": why} where it did not."""
PREDICTIONS = """\
Per token, the head (66 M weights) costs 2.6 times the eight layers (25 M). What was known: the last run (SimPO 1.9 and
1.4 times faster than TRL on short pairs, 3.9 and 4.5 on long ones, memory 0.22 and 0.15, when the head was always
computed again); the head alone, which is 1.33 times faster where it is frozen and 1.24 times where its derivative is
kept (up to 1 GB here); that TRL's DPOTrainer computes its log-probabilities in chunks too, and again in its backward
pass, but with padding and each prompt twice.
- short: 1.8 times faster than TRL, recomputed 1.6; long: 4, recomputed 3.7 (a third of the tokens need the head).
- memory above weights, gradients and optimizer state: recomputed 0.2 and 0.15 of TRL's; ours up to 1 GB more.
- lora, short pairs: 1.3 times faster than with the head computed again: of the products 4 x 25 M + 6 x 66 M instead of
  4 x 25 M + 4 x 66 M, 1.36 times fewer, and the exponentials once instead of twice.
- mixed, 16 pairs a step of 10 to 240 tokens each side: 2 or 3 passes instead of 8, so that 5 or 6 times fewer gradients
  of 155 M weights are added up, and the products are larger: 1.1 times faster, for more memory.
- dpo and wpo, short pairs, the reference a second model: 1.35 times faster than TRL.
"""
AIMS = """\
Aims: short pairs 1.8 times faster than TRL's CPOTrainer, long ones 3.2 times, memory at most 0.25 of its memory with
logits_memory 0; LoRA on short pairs 1.3 times faster than with the head computed again.
"""


def main() -> None:
    args = arguments()
    if args.run:
        print("RESULT " + json.dumps(train(args, *args.run)))
        return
    print(PREDICTIONS, flush=True)
    text = report(args, measure(args))
    print(text)
    if args.out:
        args.out.write_text(text)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--pairs", type=int, default=2, help="per batch")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="in place of the cases' own")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="bfloat16: mixed precision; frozen weights")
    parser.add_argument("--limit", type=float, help="seconds that a side has")
    parser.add_argument("--tokens", type=int, default=2048, help="in a micro-batch of the side tokens")
    parser.add_argument("--attention", default="sdpa")
    add_size(parser, hidden=512, layers=8)
    parser.add_argument("--run", nargs=4, metavar=("SIDE", "CASE", "DTYPE", "MODEL"), help=argparse.SUPPRESS)
    return parser.parse_args(words)


def add_size(parser: argparse.ArgumentParser, hidden: int, layers: int, device: str = "cpu") -> None:
    parser.add_argument("--device", default=device, choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=hidden)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--vocabulary", type=int, default=128_256)


def measure(args: argparse.Namespace) -> Results:
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(args, folder)
        for round_ in range(args.rounds):
            for dtype in args.dtypes:
                for case in args.cases:
                    for side in args.sides or CASES[case].sides:
                        found = found_by([__file__, *options(args), "--run", side, case, dtype, folder], args.limit)
                        results.setdefault((case, dtype), {}).setdefault(side, []).append(found)
                        print(f"round {round_ + 1}: {dtype} {case} {side}: {json.dumps(found)}", flush=True)
    return results


def options(args: argparse.Namespace) -> list[str]:
    names = ("steps", "pairs", "tokens", "attention", "device", "hidden", "layers", "vocabulary")
    return [f"--{name}={getattr(args, name)}" for name in names]


def found_by(program: list[str], limit: float | None = None) -> Any:
    """What a program's process prints after RESULT, as JSON; {"failed": why} where it does not, or takes too long."""
    try:
        done = subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return json.loads(lines[-1].removeprefix("RESULT "))
    print(done.stderr[-3000:], file=sys.stderr, flush=True)
    raised = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", done.stderr, re.M)
    said = [*done.stderr.split("\n"), *raised] if done.returncode > 0 else []
    return {"failed": next((line for line in reversed(said) if line.strip()), f"exit status {done.returncode}")[:200]}


def report(args: argparse.Namespace, results: Results) -> str:
    lines = [
        "# A training step",
        f"\nMachine: {len(os.sched_getaffinity(0))} cores, {args.device}, {platform.machine()}. "
        f"Date: {time.strftime('%Y-%m-%d')}. "
        f"Model: Llama-like, hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocabulary:,}; {args.pairs} "
        f"pairs a step (mixed: {args.pairs} x {CASES['mixed'].batches}), rounds: {args.rounds}, counted steps in each: "
        f"{args.steps - 1}.",
        f"\nPrediction, written before the run:\n\n{PREDICTIONS}",
        AIMS,
        *table(results),
    ]
    return "\n".join(lines) + "\n"


def table(results: Results) -> list[str]:
    lines = [
        "| case | side | step (median of each round) | times as fast as the case's last side | tokens/s "
        "| memory above the floor | of the last side's | of the matrix-product rate | first loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (case, dtype), sides in results.items():
        last = [run for run in list(sides.values())[-1] if "failed" not in run]
        for side, runs in sides.items():
            title = f"| {case}, {dtype} | {side} "
            if failed := [run["failed"] for run in runs if "failed" in run]:
                lines.append(f"{title}| {cell(failed[0])} | | | | | | |")
                continue
            steps = ", ".join(f"{run['step']:.3g} s" for run in runs)
            ratios = ", ".join(f"{t['step'] / r['step']:.2f}" for t, r in zip(last, runs, strict=False))
            peak, other = (statistics.median([r["peak_above_floor_gb"] for r in rs] or [0]) for rs in (runs, last))
            lines.append(
                f"{title}| {steps} | {ratios or '-'} "
                f"| {statistics.median(r['tokens_per_second'] for r in runs):.0f} | {peak:.2f} GB "
                f"| {f'{peak / other:.2f}' if other else '-'} "
                f"| {statistics.median(r['share_of_matmul_rate'] for r in runs):.0%} | {runs[0]['loss']:.4f} |"
            )
    found = [run for sides in results.values() for runs in sides.values() for run in runs if "failed" not in run]
    lines.append("\nThe floor: weights (the reference's too), gradients and Adam's two moments.")
    if found:
        lines.append(
            f"Matrix products: {statistics.median(run['matmul_gflops'] for run in found):,.0f} GFLOP/s (median)."
        )
    return lines


def cell(text: str) -> str:
    """What went wrong, in one cell of a table."""
    return "failed: " + text.replace("|", "/")


if __name__ == "__main__":
    main()
