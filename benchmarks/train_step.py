"""Time and memory of a SimPO training step: ours, our plain path, and TRL's CPOTrainer (loss_type="simpo").

    python benchmarks/train_step.py --out benchmarks/train_step.md [--rounds 2] [--steps 4] [--dtypes float32]

Every side trains the same model on the same pairs in a process of its own; the sides take turns, for several rounds.
Prints a Markdown report with the predictions written before the first run. --device cuda and the size options serve
GPU machines (gpu.sh).
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("ours", "recomputed", "plain", "trl")  # recomputed: ours with logits_memory 0
# (prompt, response) tokens, each drawn between half and one and a half times these
MIXES = {"short": (60, 400), "long": (800, 400)}
PREDICTIONS = """\
Per token, the head (66 M weights) costs 2.6 times the eight layers (25 M). TRL runs both over every padded position;
the fast path runs the head over response tokens only, at 8/6 of the cost (it computes the logits twice), and the layers
over each prompt once.
- short: nearly all tokens are labels, so the head saves little and pays for the recomputation: 1.6 times faster, from
  padding and from never writing gigabytes of logits.
- long: a third of the tokens are labels and the prompt runs once: 2.5 to 3 times faster.
- memory above weights, gradients and optimizer state: 0.2 of TRL's.

Second prediction, written before the second run but after single runs of the short pairs (ours and TRL's, 1.9 times)
and a profile of ours; the padding was left out only after it.
(The first: short 1.56, long 2.54, memory 0.27 and 0.18. Since then the head
uses its memory again, shared prompts attend in pieces, and all sides have transformers' default optimizer, the fused
AdamW.) short: 2.1 times faster than TRL; long: 3 times; memory: 0.1 of TRL's; half of the matrix-product rate.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--pairs", type=int, default=2, help="per step")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="bfloat16: mixed precision")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--run", nargs=4, metavar=("SIDE", "MIX", "DTYPE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print("RESULT " + json.dumps(train(args, *args.run)))
        return
    print(PREDICTIONS, flush=True)
    results: dict[tuple[str, str], dict[str, list[dict]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(args, Path(folder))
        for round_ in range(args.rounds):
            for dtype in args.dtypes:
                for mix in args.mixes:
                    for side in args.sides:
                        found = in_own_process(args, side, mix, dtype, model)
                        results.setdefault((mix, dtype), {}).setdefault(side, []).append(found)
                        print(f"round {round_ + 1}: {dtype} {mix} {side}: {json.dumps(found)}", flush=True)
    text = report(args, results)
    print(text)
    if args.out:
        args.out.write_text(text)


def in_own_process(args: argparse.Namespace, *run: str) -> dict[str, Any]:
    sizes = [f"--{name}={getattr(args, name)}" for name in ("steps", "pairs", "device", "hidden", "layers")]
    command = [sys.executable, __file__, *sizes, f"--vocabulary={args.vocabulary}", "--run", *run]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(lines[-1].removeprefix("RESULT "))


def make_model(args: argparse.Namespace, folder: Path) -> str:
    from tiny_models import tiny_model

    return tiny_model(
        folder / "model",
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        head_dim=64,
        max_position_embeddings=4096,
        initializer_range=0.02,
    )


def make_rows(mix: str, count: int) -> list[dict[str, str]]:
    """Texts in which every word is one token or two of the tiny tokenizer; the same for every side."""
    chance, words = random.Random(0), ["the", " capital", " France", " days", " week", " water", " sky", " is", " in"]

    def text(tokens: int) -> str:
        return "".join(chance.choices(words, k=max(1, int(tokens * chance.uniform(0.5, 1.5) / 1.2))))

    prompt, response = MIXES[mix]
    return [{"prompt": text(prompt), "chosen": text(response), "rejected": text(response)} for _ in range(count)]


def train(args: argparse.Namespace, side: str, mix: str, dtype: str, model: str) -> dict[str, Any]:
    """Train for a few steps; seconds of each step, peak memory, and the work that had to be done."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    if side == "trl":
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    else:
        from simpo_config import SimPOConfig
        from simpo_trainer import SimPOTrainer

    rows = Dataset.from_list(make_rows(mix, args.pairs * args.steps))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    rate = matmul_rate(torch, dtype, args.device)
    before = memory(torch, args.device, "VmRSS")
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.start)

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder, "max_length": 2048, "max_steps": args.steps, "use_cpu": args.device == "cpu",
            "per_device_train_batch_size": args.pairs, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
            "learning_rate": 1e-6, "disable_tqdm": True, "bf16": dtype == "bfloat16", "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential", "beta": 2.0, "optim": "adamw_torch_fused",
            "remove_unused_columns": False,
        }  # fmt: skip
        kwargs = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [Clock()]}
        if side == "trl":
            trl_args = CPOConfig(**settings, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=1.0)
            trainer = CPOTrainer(policy, args=trl_args, **kwargs)
        else:
            path = {"ours": {}, "recomputed": {"logits_memory": 0.0}, "plain": {"fused_logps": False}}[side]
            ours = SimPOConfig(**settings, **path, gamma_beta_ratio=0.5, max_prompt_length=1500)
            trainer = SimPOTrainer(policy, args=ours, **kwargs)
        trainer.train()
    weights = sum(p.numel() for p in policy.parameters())
    work = useful_work(tokenizer, rows.select(range(args.pairs, len(rows))), policy, args)  # without the first step's
    counted = sum(seconds[1:])
    return {
        "seconds": [round(s, 2) for s in seconds],
        "step": statistics.median(seconds[1:]),
        "tokens_per_second": work["tokens"] / counted,
        "peak_above_floor_gb": (memory(torch, args.device) - before - 16 * weights) / 1e9,
        "share_of_matmul_rate": work["flop"] / counted / rate,
        "matmul_gflops": rate / 1e9,
        "loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
    }


def useful_work(tokenizer: Any, rows: Any, policy: Any, args: argparse.Namespace) -> dict[str, float]:
    """Tokens of both sequences, and floating point operations if nothing is done twice or for nothing: 6 per
    weight and token (forward and backward), each prompt once, the head for response tokens only; and 12 per layer,
    hidden size and pair of tokens of which one attends to the other."""
    head = policy.lm_head.weight.numel()
    layers = sum(p.numel() for p in policy.model.layers.parameters())
    tokens = flop = 0
    for row in rows:
        prompt, *responses = (len(tokenizer(row[name])["input_ids"]) for name in ("prompt", "chosen", "rejected"))
        tokens += 2 * prompt + sum(responses)
        attended = prompt**2 / 2 + sum(prompt * response + response**2 / 2 for response in responses)
        flop += (
            6 * (layers * (prompt + sum(responses)) + head * sum(responses)) + 12 * args.layers * args.hidden * attended
        )
    return {"tokens": tokens, "flop": flop}


def matmul_rate(torch: Any, dtype: str, device: str) -> float:
    """Floating point operations per second of a large matrix product, the best of five."""
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory(torch: Any, device: str, of_process: str = "VmHWM") -> int:
    """Most bytes used so far, of the GPU or the process; of the process also those used now (VmRSS)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(of_process))


def report(args: argparse.Namespace, results: dict[tuple[str, str], dict[str, list[dict]]]) -> str:
    rate = statistics.median(r["matmul_gflops"] for sides in results.values() for rs in sides.values() for r in rs)
    lines = [
        "# A training step",
        f"\nMachine: {len(os.sched_getaffinity(0))} cores, {args.device}, {platform.machine()}, "
        f"{rate:.0f} GFLOP/s in matrix products (median). Date: {time.strftime('%Y-%m-%d')}. "
        f"Model: Llama-like, hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocabulary:,}; {args.pairs} "
        f"pairs a step, {args.rounds} rounds of {args.steps - 1} counted steps.",
        f"\nPrediction, written before the run:\n\n{PREDICTIONS}",
        "| pairs | side | step (median of each round) | faster than TRL, each round | tokens/s "
        "| memory above the floor | of TRL's | of the matrix-product rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (mix, dtype), sides in results.items():
        for side, runs in sides.items():
            trl = sides.get("trl", runs)
            steps = ", ".join(f"{r['step']:.2f} s" for r in runs)
            ratios = ", ".join(f"{t['step'] / r['step']:.2f}" for t, r in zip(trl, runs, strict=True))
            peak, other = (statistics.median(r["peak_above_floor_gb"] for r in rs) for rs in (runs, trl))
            lines.append(
                f"| {mix}, {dtype} | {side} | {steps} | {ratios} "
                f"| {statistics.median(r['tokens_per_second'] for r in runs):.0f} | {peak:.2f} GB "
                f"| {peak / other:.2f} | {statistics.median(r['share_of_matmul_rate'] for r in runs):.0%} |"
            )
    losses = {side: runs[0]["loss"] for side, runs in next(iter(results.values())).items()}
    lines.append("\nThe floor: weights, gradients and Adam's two moments. First loss of the first case: "
                 + ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items()) + ".")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
