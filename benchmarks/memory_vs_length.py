"""Peak memory of one SimPO forward and backward pass against sequence length, batch and vocabulary.

    python benchmarks/memory_vs_length.py --out benchmarks/memory_vs_length.md      (and a .png beside it)

Every point is a process of its own; what is counted is the memory above weights and gradients, as in the first
micro-batch of a step, which makes the head's gradient (a later one makes it anew, and adds). The model has two small
layers: what grows is what the log-probabilities cost.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

LENGTHS, VOCABULARIES, PAIRS = (512, 1024, 2048, 4096), (32_000, 128_256, 256_000), (1, 2, 4)
PREDICTIONS = """\
- fast path: flat in the vocabulary (a chunk holds a fixed number of logits), linear in length and pairs with a small
  slope (hidden states and attention masks).
- plain path: proportional to length x pairs x vocabulary, three to four float32 copies of the logits: at 2 x 2,048
  tokens and 128,256 words 6 to 8 GB.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit_gb", type=float, default=16, help="skip plain points that would need more")
    parser.add_argument("--run", nargs=4, metavar=("PATH", "LENGTH", "PAIRS", "VOCABULARY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        path, *sizes = args.run
        print("RESULT", peak_of_a_step(path, *map(int, sizes)))
        return
    print(PREDICTIONS, flush=True)
    points = [(length, 1, 128_256) for length in LENGTHS] + [(1024, pairs, 128_256) for pairs in PAIRS[1:]]
    points += [(2048, 1, vocabulary) for vocabulary in VOCABULARIES if vocabulary != 128_256]
    found: dict[tuple[str, int, int, int], float | None] = {}
    for point, path in itertools.product(points, ("fast", "plain")):
        length, pairs, vocabulary = point
        needed = 4 * 4 * 2 * pairs * length * vocabulary / 1e9  # four float32 copies
        found[path, *point] = None if path == "plain" and needed > args.limit_gb else in_own_process(path, *point)
        print(path, point, found[path, *point], flush=True)
    lines = [
        "# Peak memory of a forward and backward pass",
        f"\nMachine: {len(os.sched_getaffinity(0))} cores, CPU only, {platform.machine()}, float32. "
        f"Date: {time.strftime('%Y-%m-%d')}. GB above weights and gradients; a dash: too large for the machine."
        f"\n\nPrediction, written before the run:\n\n{PREDICTIONS}",
        "| tokens per sequence | pairs | vocabulary | fast path | plain path |",
        "|---|---|---|---|---|",
    ]
    for point in points:
        cells = ["-" if found[path, *point] is None else f"{found[path, *point]:.2f}" for path in ("fast", "plain")]
        lines.append(f"| {point[0]:,} | {point[1]} | {point[2]:,} | {' | '.join(cells)} |")
    report = "\n".join(lines) + "\n"
    print(report)
    if args.out:
        args.out.write_text(report)
        plot(found, args.out.with_suffix(".png"))


def in_own_process(*run: object) -> float:
    done = subprocess.run([sys.executable, __file__, "--run", *map(str, run)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(lines[-1].removeprefix("RESULT "))


def peak_of_a_step(path: str, length: int, pairs: int, vocabulary: int) -> float:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from simpo.logps.fused import FastPath, fast_logps
    from simpo.logps.plain import plain_logps
    from simpo.objectives.losses import simpo_loss

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    head = model.lm_head.weight
    for parameter in model.parameters():
        parameter.grad = None if parameter is head else torch.zeros_like(parameter)
    shape = (2 * pairs, length)
    ids = torch.randint(vocabulary, shape)
    ids[pairs:, : length // 4] = ids[:pairs, : length // 4]
    labels = ids.clone()
    labels[:, : length // 4] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_kib()
    if path == "fast":
        logps = fast_logps(model, model, FastPath(True, True, False), **batch).means
    else:
        logps = plain_logps(model, **batch).means
    simpo_loss(*logps.chunk(2), beta=2.0, gamma_beta_ratio=0.5).losses.mean().backward()
    return ((peak_kib() - before) * 1024 - head.nbytes) / 1e9


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def plot(found: dict[tuple[str, int, int, int], float | None], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    lines = [
        (axes[0], "tokens per sequence (one pair, 128,256 words)", 1, lambda n, p, v: (p, v) == (1, 128_256)),
        (axes[1], "vocabulary (one pair of 2,048 tokens)", 3, lambda n, p, v: (n, p) == (2048, 1)),
    ]
    for axis, label, which, wanted in lines:
        for path, colour in (("plain", "#b03a00"), ("fast", "#00704f")):
            points = sorted(
                (key[which], value) for key, value in found.items() if value and key[0] == path and wanted(*key[1:])
            )
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=f"{path} path")
        axis.set(xlabel=label, ylabel="GB above weights and gradients", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
