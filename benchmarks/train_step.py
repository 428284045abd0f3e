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
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
    """wpo: TRL does not cut its weights at 1, which those of these random models do not reach."""
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


def size(args: argparse.Namespace) -> dict[str, Any]:
    """Of a Llama-like model, as its config has it."""
    return {
        "vocab_size": args.vocabulary,
        "hidden_size": args.hidden,
        "intermediate_size": args.hidden * 11 // 4,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
        "num_key_value_heads": args.hidden // 64,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
    }


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


def make_model(args: argparse.Namespace, folder: str) -> None:
    """A tokenizer and a config, for random weights made where they are used. BOS is the tokenizer's own: TRL's
    CPOTrainer puts one in front in any case, as we do, and its DPOTrainer only what the tokenizer puts."""
    from transformers import LlamaConfig

    from tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer(adds_bos=True)
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaConfig(**size(args), **ends).save_pretrained(folder)


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
    from transformers import AutoConfig, AutoModelForCausalLM

    def load() -> Any:
        torch.manual_seed(0)
        weights = dtype if case.lora else "float32"
        with torch.device(args.device):
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(model), dtype=getattr(torch, weights), attn_implementation=args.attention
            )

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
        "tokens": {"max_tokens_per_micro_batch": args.tokens},
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
    torch.backends.cuda.enable_cudnn_sdp(False)  # as our programs do; for every side, or its plans would be measured
    rate = matmul_rate(torch, dtype, args)
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
    weights = sum(p.nbytes for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    floor = weights + 12 * trained + (0 if case.objective == "simpo" else weights)  # with a reference
    counted_rows = rows.select(range(args.pairs * case.batches, len(rows)))  # without the first step's
    work, counted = useful_work(tokenizer, counted_rows, trainer.model, case, args), sum(seconds[1:])
    return {
        "seconds": [round(s, 3) for s in seconds],
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


def matmul_rate(torch: Any, dtype: str, args: argparse.Namespace) -> float:
    """Floating point operations per second of a large matrix product, the best of five."""
    width = 4 * args.hidden
    a = torch.randn(width, width, dtype=getattr(torch, dtype), device=args.device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if args.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best


def memory(torch: Any, device: str, of_process: str = "VmHWM") -> int:
    """Most bytes used so far, of the GPU or the process; with VmRSS those used now."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if of_process == "VmHWM" else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(of_process))


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
