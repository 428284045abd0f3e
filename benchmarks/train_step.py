"""Time and memory of a training step: ours, our slower paths, and TRL's CPOTrainer (SimPO) and DPOTrainer (DPO, WPO).

    python benchmarks/train_step.py --out benchmarks/train_step.md [--rounds 1] [--steps 4] [--cases short dpo]

Every side of a case trains the same model on the same pairs in a process of its own; the sides take turns. Prints a
Markdown report with the prediction written before the run. --device cuda and the size options serve GPU machines
(gpu.sh).
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
from typing import Any, NamedTuple


class Case(NamedTuple):
    """What is trained, and by which sides; the last one is what the others are compared with.

    Sides: ours; recomputed (ours, the head computed again in the backward pass: with logits_memory 0, and for a frozen
    head as it once was); tokens (ours by max_tokens_per_micro_batch); plain (ours without the fast path); trl.
    """

    sides: tuple[str, ...]
    prompt: int
    """Tokens, each drawn between `spread` times this."""
    response: int
    spread: tuple[float, float] = (0.5, 1.5)
    objective: str = "simpo"
    lora: bool = False
    batches: int = 1
    """Of --pairs pairs each, accumulated to a step."""


CASES = {
    "short": Case(("ours", "recomputed", "trl"), 60, 400),
    "lora": Case(("ours", "recomputed"), 60, 400, lora=True),
    "mixed": Case(("tokens", "ours"), 30, 60, spread=(0.1, 3.0), batches=8),
    "dpo": Case(("ours", "trl"), 60, 400, objective="dpo"),
    "wpo": Case(("ours", "trl"), 60, 400, objective="wpo"),
    "long": Case(("ours", "recomputed", "trl"), 800, 400),
}
SIDES = ("ours", "recomputed", "tokens", "plain", "trl")
TOKENS = 2048  # in a micro-batch of the side tokens
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--pairs", type=int, default=2, help="per batch")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="in place of the cases' own")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="bfloat16: mixed precision")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--run", nargs=4, metavar=("SIDE", "CASE", "DTYPE", "MODEL"), help=argparse.SUPPRESS)
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
                for case in args.cases:
                    for side in args.sides or CASES[case].sides:
                        found = in_own_process(args, side, case, dtype, model)
                        results.setdefault((case, dtype), {}).setdefault(side, []).append(found)
                        print(f"round {round_ + 1}: {dtype} {case} {side}: {json.dumps(found)}", flush=True)
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


def make_rows(case: Case, count: int) -> list[dict[str, str]]:
    """Texts in which every word is one token or two of the tiny tokenizer; the same for every side."""
    chance, words = random.Random(0), ["the", " capital", " France", " days", " week", " water", " sky", " is", " in"]

    def text(tokens: int) -> str:
        return "".join(chance.choices(words, k=max(1, int(tokens * chance.uniform(*case.spread) / 1.2))))

    return [
        {"prompt": text(case.prompt), "chosen": text(case.response), "rejected": text(case.response)}
        for _ in range(count)
    ]


def make_trainer(args: argparse.Namespace, side: str, case: Case, dtype: str, model: str, **kwargs: Any) -> Any:
    """A side's trainer, everything of the training but the side being the same."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")

    settings = {
        "max_length": 2048, "max_steps": args.steps, "use_cpu": args.device == "cpu",
        "per_device_train_batch_size": args.pairs, "gradient_accumulation_steps": case.batches, "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-6, "disable_tqdm": True,
        "bf16": dtype == "bfloat16", "gradient_checkpointing": False, "train_sampling_strategy": "sequential",
        "beta": 2.0 if case.objective == "simpo" else 0.1, "optim": "adamw_torch_fused",
        "remove_unused_columns": False, "output_dir": kwargs.pop("output_dir"),
    }  # fmt: skip
    if case.lora:
        kwargs["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if side == "trl" and case.objective == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        of_trl = CPOConfig(**settings, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=1.0)
        return CPOTrainer(load(), args=of_trl, **kwargs)
    if side == "trl":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer(load(), load(), args=DPOConfig(**settings, use_weighting=case.objective == "wpo"), **kwargs)
    from simpo.train.config import config_class
    from simpo.train.trainer import PreferenceTrainer

    settings |= {
        "ours": {},
        "recomputed": {"logits_memory": 0.0},
        "tokens": {"max_tokens_per_micro_batch": TOKENS},
        "plain": {"fused_logps": False},
    }[side]
    if case.objective == "simpo":
        settings["gamma_beta_ratio"] = 0.5
    if side == "recomputed" and case.lora:
        compute_the_head_again()
    ours = config_class(case.objective)(**settings, max_prompt_length=1500)
    reference = load() if ours.declaration.reference else None
    return PreferenceTrainer(load(), ours, ref_model=reference, **kwargs)


def compute_the_head_again() -> None:
    """Let a frozen head do as a trained one without memory does, but for its own gradient."""
    from simpo.logps.head import HeadLogps

    forward = HeadLogps.forward

    def as_if_trained(ctx: Any, *inputs: Any) -> Any:
        asked = ctx.needs_input_grad
        ctx.needs_input_grad = (asked[0], True, *asked[2:])
        found = forward(ctx, *inputs)
        ctx.needs_input_grad = asked
        return found

    HeadLogps.forward = staticmethod(as_if_trained)


def train(args: argparse.Namespace, side: str, name: str, dtype: str, model: str) -> dict[str, Any]:
    """Train for a few steps; seconds of each step, peak memory, and the work that had to be done."""
    import torch
    import trl  # noqa: F401 (its imports' memory is no side's)
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    case, seconds = CASES[name], []
    rows = Dataset.from_list(make_rows(case, args.pairs * case.batches * args.steps))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    rate = matmul_rate(torch, dtype, args.device)
    before = memory(torch, args.device, "VmRSS")

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        kwargs = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [Clock()], "output_dir": folder}
        trainer = make_trainer(args, side, case, dtype, model, **kwargs)
        trainer.train()
    weights, trained = (
        sum(p.numel() for p in trainer.model.parameters() if p.requires_grad or not only) for only in (False, True)
    )
    floor = 4 * weights + 12 * trained + (0 if case.objective == "simpo" else 4 * weights)  # with a reference
    counted_rows = rows.select(range(args.pairs * case.batches, len(rows)))  # without the first step's
    work, counted = useful_work(tokenizer, counted_rows, trainer.model, case, args), sum(seconds[1:])
    return {
        "seconds": [round(s, 2) for s in seconds],
        "step": statistics.median(seconds[1:]),
        "tokens_per_second": work["tokens"] / counted,
        "peak_above_floor_gb": (memory(torch, args.device) - before - floor) / 1e9,
        "share_of_matmul_rate": work["flop"] / counted / rate,
        "matmul_gflops": rate / 1e9,
        "loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
    }


def useful_work(tokenizer: Any, rows: Any, policy: Any, case: Case, args: argparse.Namespace) -> dict[str, float]:
    """Tokens of both sequences, and floating point operations if nothing is done twice or for nothing.

    Per weight and token 2 forward, 2 backward and 2 more for the gradient of a trained weight, and 2 for a reference;
    each prompt once, the head for response tokens only; and per layer, hidden size and pair of tokens of which one
    attends to the other 12, and 4 for a reference.
    """
    model = policy.get_base_model() if case.lora else policy
    head = model.lm_head.weight.numel()
    layers = sum(p.numel() for p in model.model.layers.parameters())
    of_reference = 0 if case.objective == "simpo" else 2
    per_weight, per_attended = (4 if case.lora else 6) + of_reference, 12 + 2 * of_reference
    tokens = flop = 0
    for row in rows:
        prompt, *responses = (len(tokenizer(row[name])["input_ids"]) for name in ("prompt", "chosen", "rejected"))
        tokens += 2 * prompt + sum(responses)
        attended = prompt**2 / 2 + sum(prompt * response + response**2 / 2 for response in responses)
        flop += per_weight * (layers * (prompt + sum(responses)) + head * sum(responses))
        flop += per_attended * args.layers * args.hidden * attended
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
        f"pairs a step (mixed: {args.pairs} x {CASES['mixed'].batches}), rounds: {args.rounds}, counted steps in each: "
        f"{args.steps - 1}.",
        f"\nPrediction, written before the run:\n\n{PREDICTIONS}",
        AIMS,
        "| case | side | step (median of each round) | times as fast as the case's last side | tokens/s "
        "| memory above the floor | of the last side's | of the matrix-product rate | first loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (case, dtype), sides in results.items():
        last = list(sides.values())[-1]
        for side, runs in sides.items():
            steps = ", ".join(f"{r['step']:.2f} s" for r in runs)
            ratios = ", ".join(f"{t['step'] / r['step']:.2f}" for t, r in zip(last, runs, strict=True))
            peak, other = (statistics.median(r["peak_above_floor_gb"] for r in rs) for rs in (runs, last))
            lines.append(
                f"| {case}, {dtype} | {side} | {steps} | {ratios} "
                f"| {statistics.median(r['tokens_per_second'] for r in runs):.0f} | {peak:.2f} GB "
                f"| {peak / other:.2f} | {statistics.median(r['share_of_matmul_rate'] for r in runs):.0%} "
                f"| {runs[0]['loss']:.4f} |"
            )
    lines.append("\nThe floor: weights (the reference's too), gradients and Adam's two moments.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
