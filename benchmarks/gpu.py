"""All that is measured on a GPU, on one page: training steps, decoding, scoring, and the fast path's results.

    bash benchmarks/gpu.sh                   one CUDA GPU of 80 GB, under 10 minutes
    SIZE=tiny bash benchmarks/gpu.sh         every part on a CPU, to see that it works

Every part runs in processes of its own. One that fails is a row that says why. The page is written after each part.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import train_step
from sides import Case, make_rows, size
from train_step import add_size, cell, found_by

HERE = Path(__file__).parent
PREDICTIONS = """\
- 1B, SimPO: short pairs 1.4 times faster than TRL (fewer tokens by a third, no logits written; Adam takes as long for
  both), long ones 2.3 times; memory 0.5 and 0.3 of TRL's. The plain path is as fast as TRL. With flash attention ours
  gains more than TRL: long pairs 2.5 times.
- mixed lengths by tokens: one pass instead of 8 small ones that keep the GPU waiting: 3 times.
- DPO, short pairs: 1.3 times faster than TRL's DPOTrainer, which does not write the logits either.
- LoRA, 4B and 8B: 1.4 times faster than TRL.
- decode: 15,000 to 25,000 tokens/s, limited by sampling; its own loop within 2 % of `LLM.generate`.
- annotate: one response at a time leaves the GPU waiting for the CPU: batches are 8 times faster.
- the fast path's log-probabilities are as far from float32 as the plain path's in bf16.
"""


class Part(NamedTuple):
    name: str
    program: str
    options: str
    seconds: int
    """Expected on an H100 with 16 cores: 14 for each training process, most of them imports."""


SMALL, WIDE = "--hidden 2048 --layers 16 --pairs 4", "--hidden 4096 --pairs 2"
PARTS = [
    Part("1B", "train_step", f"{SMALL} --cases short long --sides ours plain trl", 84),
    Part("1B", "train_step", f"{SMALL} --cases mixed --sides tokens ours", 28),
    Part("1B", "train_step", f"{SMALL} --cases dpo --sides ours trl", 28),
    Part("1B flash-attn", "train_step", f"{SMALL} --cases long --sides ours trl --attention flash_attention_2", 28),
    Part("4B", "train_step", f"{WIDE} --layers 16 --cases lora --sides ours plain trl", 48),
    Part("8B", "train_step", f"{WIDE} --layers 32 --cases lora --sides ours plain trl", 60),
    Part("decode", "gpu", "--part decode", 110),
    Part("annotate", "gpu", "--part annotate", 50),
    Part("sdpa", "gpu_parity", "--attention sdpa", 30),
    Part("flash_attention_2", "gpu_parity", "--attention flash_attention_2", 30),
    Part("flex_attention", "gpu_parity", "--attention flex_attention", 60),
]
FOR_TRAINING = "--device cuda --dtypes bfloat16 --steps 11 --tokens 16384"
LIMIT = 240  # seconds that one process has
TINY = "--device cpu --hidden 64 --layers 2 --vocabulary 512"
TINY_OF = {"train_step": " --pairs 1 --steps 2", "gpu": " --count 8 --length 40 --repeats 1", "gpu_parity": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "gpu.md")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", choices=["decode", "annotate"], help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=500, help="responses")
    parser.add_argument("--length", type=int, default=430, help="tokens of a response, times 0.1 to 2")
    parser.add_argument("--repeats", type=int, default=2)
    add_size(parser, hidden=2048, layers=16, device="cuda")
    args = parser.parse_args()
    if args.part:
        print("RESULT " + json.dumps({"decode": decode, "annotate": annotate}[args.part](args)))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(PREDICTIONS, flush=True)
    head, done = machine(), []
    if args.tiny:
        head.append("SIZE=tiny, which shows that every part runs: the numbers say nothing")
    for part in PARTS:
        if args.tiny and part.name == "8B":
            continue  # as small as the 4B
        print(f"{part.program}.py {part.options} (about {part.seconds} s on an H100)", flush=True)
        start = time.perf_counter()
        found = measure(part, args.tiny)
        done.append((part, found, time.perf_counter() - start))
        print(f"took {done[-1][2]:.0f} s: {found if part.program != 'train_step' else ''}", flush=True)
        args.out.write_text(page(head, done))
    print(args.out.read_text())


def measure(part: Part, tiny: bool) -> Any:
    """A training part's results by case and dtype, and side; else what the program found."""
    words = part.options.split() + (TINY + TINY_OF[part.program]).split() * tiny
    if part.program == "train_step":
        words = FOR_TRAINING.split() + words
        return train_step.measure(train_step.arguments([*words, "--limit", str(LIMIT)]))
    return found_by([str(HERE / f"{part.program}.py"), *words], LIMIT)


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """`LLM.generate` and decode's loop on one engine, the same requests, each of a given length."""
    from data_generation import both_loops, make_requests
    from simpo.engine.vllm import engine_settings
    from tiny_models import tiny_llama

    chance, lengths = random.Random(0), []
    requests = make_requests(args.count, ignore_eos=True)
    for request in requests:
        lengths.append(max(1, int(args.length * chance.uniform(0.1, 2))))
        request.sampling["max_tokens"] = lengths[-1]
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_llama(Path(folder) / "model", **size(args))
        settings = engine_settings(model, "bfloat16", 1024, 1, None, False)
        times = both_loops(Path(folder), settings, requests, args.repeats)
    sides = dict(zip(("`LLM.generate`", "decode's loop, with its journal"), times, strict=True))
    return {"responses": len(requests), "tokens": sum(lengths), "seconds": sides}


def annotate(args: argparse.Namespace) -> dict[str, Any]:
    """A classifier on one response at a time, and in the batches of reward_model_annotate."""
    import torch

    from data_generation import score_both_ways
    from tiny_reward_models import tiny_classifier

    torch.backends.cuda.enable_cudnn_sdp(False)  # as reward_model_annotate does
    rows = make_rows(Case((), 60, args.length, spread=(0.1, 2)), args.count // 2)
    units = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    with tempfile.TemporaryDirectory() as folder:
        name = tiny_classifier(Path(folder), "llama", **size(args))
        lengths, _, *times = score_both_ways(name, units, args.repeats, args.device, "bfloat16")
    sides = dict(zip(("one at a time", "batches"), times, strict=True))
    return {"responses": len(units), "tokens": sum(lengths), "seconds": sides}


def machine() -> list[str]:
    """The card, its driver, and what is installed."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip().replace("\n", "; ")
    except (OSError, subprocess.CalledProcessError):
        card = "no GPU"
    packages = packages_distributions()
    modules = ("torch", "transformers", "trl", "peft", "vllm", "flash_attn", "kernels")
    versions = [f"{packages[m][0]} {version(packages[m][0])}" if m in packages else f"no {m}" for m in modules]
    return [f"{card}; {len(os.sched_getaffinity(0))} cores, {platform.machine()}", ", ".join(versions)]


def page(head: list[str], done: list[tuple[Part, Any, float]]) -> str:
    """The page of the parts that are done.

    Args:
        head: what to say of the machine, a line each.
        done: parts, what `measure` returned for them, and the seconds it took.
    """
    training = {
        (f"{part.name}, {case}", dtype): sides
        for part, found, _ in done
        if part.program == "train_step"
        for (case, dtype), sides in found.items()
    }
    speeds = [row for part, found, _ in done if part.program == "gpu" for row in speed_rows(part.name, found)]
    parity = [
        f"- {part.name}: {cell(found['failed']) if 'failed' in found else found['text']}"
        for part, found, _ in done
        if part.program == "gpu_parity"
    ]
    spent = [f"| {part.program}.py {part.options} | {part.seconds} | {took:.0f} |" for part, _, took in done]
    lines = [
        "# On a GPU",
        f"\nMachine: {head[0]}. Date: {time.strftime('%Y-%m-%d')}.\nInstalled: {'. '.join(head[1:])}.",
        f"\nPrediction, written before the run (one H100 of 80 GB):\n\n{PREDICTIONS}",
        "## Training steps\n",
        "Random Llama-like models, vocabulary 128,256, mixed precision in bf16, a frozen model in bf16; 4 pairs a step "
        "(1B; mixed: 4 x 8) or 2. short: prompts of 60 tokens, responses of 400; long: prompts of 800.\n",
        *train_step.table(training),
        "\n## Decoding and scoring: a model of 1B in bf16\n",
        "| part | side | seconds (median, all) | responses/s | tokens/s | times as fast as the first side |",
        "|---|---|---|---|---|---|",
        *speeds,
        "\n## Log-probabilities of the fast path against the plain one, in bf16\n",
        *parity,
        "\n## Seconds, start and imports included\n",
        "| part | expected on an H100 | taken |",
        "|---|---|---|",
        *spent,
        f"| all | {sum(part.seconds for part in PARTS)} | {sum(took for *_, took in done):.0f} |",
    ]
    return "\n".join(lines) + "\n"


def speed_rows(name: str, found: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return [f"| {name} | | {cell(found['failed'])} | | | |"]
    first, rows = statistics.median(next(iter(found["seconds"].values()))), []
    for side, times in found["seconds"].items():
        median = statistics.median(times)
        shown = f"{median:.3g} ({', '.join(f'{seconds:.3g}' for seconds in times)})"
        rates = [f"{found[what] / median:,.0f}" for what in ("responses", "tokens")]
        rows.append(f"| {name} | {side} | {shown} | {rates[0]} | {rates[1]} | {first / median:.2f} |")
    return rows


if __name__ == "__main__":
    main()
