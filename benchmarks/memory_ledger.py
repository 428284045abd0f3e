"""The memory that `--dry_run` calculates against what training on a CPU takes.

    python benchmarks/memory_ledger.py --out benchmarks/memory_ledger.md

Every case is a process of its own, which trains a random model for two steps. What it takes is its largest resident
size above that before the model was made, when a smaller model had already been trained in it. Memory from 64 KB on
goes back to the system as soon as it is free (MALLOC_MMAP_THRESHOLD_), so that what counts is what is in use.
"""

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "all weights, without logits": {"vocabulary": 64_000, "hidden": 512, "layers": 4, "pairs": 1, "prompt": 60},
    "all weights, long": {"vocabulary": 8_000, "hidden": 512, "layers": 8, "pairs": 1, "prompt": 800},
    "all weights, plain, accumulated": {
        "vocabulary": 32_000, "hidden": 512, "layers": 4, "pairs": 2, "prompt": 60, "fused_logps": False,
        "gradient_accumulation_steps": 2,
    },
    "LoRA, gradient checkpointing": {
        "vocabulary": 32_000, "hidden": 512, "layers": 8, "pairs": 2, "prompt": 800, "use_peft": True,
        "gradient_checkpointing": True,
    },
}  # fmt: skip
PREDICTION = """\
Within 15 % in every case. The first one is mostly weights and the head, of which little is left to guess: within 5 %.
The ledger knows the longest pairs, not which of them meet in a batch, so it is above rather than below; activations are
counted for Llama-like layers: within 10 %.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--run", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print("RESULT " + json.dumps(take(**CASES[args.run])))
        return
    print(PREDICTION, flush=True)
    found = {}
    for name in args.cases:
        found[name] = in_own_process(name)
        print(name, json.dumps(found[name]), flush=True)
    report = tabulated(found)
    print(report)
    if args.out:
        args.out.write_text(report)


def in_own_process(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--run", name],
        **{"capture_output": True, "text": True, "env": os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(lines[-1].removeprefix("RESULT "))


def take(vocabulary: int, hidden: int, layers: int, **case: Any) -> dict[str, Any]:
    train(512, 64, 1, **case)
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    needs, moment = train(vocabulary, hidden, layers, **case)
    return {"measured": memory("VmHWM") - before, "calculated": sum(needs.values()), "moment": moment, "needs": needs}


def train(
    vocabulary: int, hidden: int, layers: int, pairs: int, prompt: int, use_peft: bool = False, **settings: Any
) -> tuple[dict[str, float], str]:
    """Train for two steps; returns what was calculated before the first one."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    from simpo.config import ModelArguments
    from simpo.train.dry_run import card_of, plan_of
    from simpo.train.ledger import ledger
    from simpo.train.model import get_peft_config
    from simpo_config import SimPOConfig
    from simpo_trainer import SimPOTrainer
    from tiny_models import tiny_tokenizer

    model_args = ModelArguments(use_peft=use_peft)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )  # fmt: skip
    rows = make_rows(prompt, 2 * pairs * settings.get("gradient_accumulation_steps", 1))
    with tempfile.TemporaryDirectory() as folder:
        args = SimPOConfig(
            output_dir=folder, max_length=2048, max_prompt_length=1500, max_steps=2, use_cpu=True, report_to="none",
            per_device_train_batch_size=pairs, save_strategy="no", learning_rate=1e-6, disable_tqdm=True,
            optim="adamw_torch_fused", **settings,
        )  # fmt: skip
        trainer = SimPOTrainer(
            LlamaForCausalLM(config),
            args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
            peft_config=get_peft_config(model_args),
        )
        found = ledger(plan_of(trainer, model_args), card_of(args))
        trainer.train()
    return found


def make_rows(prompt: int, count: int) -> list[dict[str, str]]:
    """Pairs whose sides are about 300 to 500 tokens long, after prompts of half to one and a half times so many."""
    chance, words = random.Random(0), [" capital", " France", " days", " week", " water", " sky"]

    def text(tokens: float) -> str:
        return "".join(chance.choices(words, k=int(tokens)))

    return [
        {
            "prompt": text(prompt * chance.uniform(0.5, 1.5)),
            "chosen": text(chance.uniform(300, 500)),
            "rejected": text(chance.uniform(300, 500)),
        }
        for _ in range(count)
    ]


def memory(which: str) -> int:
    """Bytes that this process has in memory (VmRSS), or had at most (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(which))


def tabulated(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# The ledger of memory",
        f"\nMachine: {len(os.sched_getaffinity(0))} cores, CPU only, {platform.machine()}, float32. "
        f"Date: {time.strftime('%Y-%m-%d')}. GB above the process without a model."
        f"\n\nPrediction, written before the run:\n\n{PREDICTION}",
        "| case | calculated | measured | calculated / measured | peak in | of which, calculated |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in result["needs"].items())
        calculated, measured = result["calculated"], result["measured"]
        ratio = f"{calculated / measured:.2f} | {result['moment']} | {parts}"
        lines.append(f"| {name} | {calculated / 1e9:.2f} | {measured / 1e9:.2f} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
