"""How much the data scripts gain: all seeds in one engine, batched scoring, shared prompts. Both sides in turn.

    PYTHONPATH=on_policy_data_gen python benchmarks/data_generation.py --out data_generation.md [--responses FOLDER]
        [--only seeds loop batched shared]

FOLDER holds output_{seed}.json files (../shared/real_decodes by default), whose lengths the scoring side takes. Prints
a Markdown report, with the predictions written before the first run, and writes it to --out.
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
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpo.engine.vllm import Request

ROOT = Path(__file__).resolve().parent.parent
SEEDS = [13, 21, 42, 79, 100]
PARTS = ["seeds", "loop", "batched", "shared"]
LARGER = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
LARGER |= {"head_dim": 64}
PREDICTIONS = """\
1. Five seeds, one engine: start-up (about 12 s) is paid once instead of five times and generation of 40 short answers
   is small against it, so 4 to 5 times faster.
2. decode's loop against vLLM's own `LLM.generate`: one JSON line per finished response is the only extra work, about
   0.1 ms against 10 ms of generation: 1 %.
3. Batched scoring: a tiny reward model is limited by the overhead per call, as a large one is on a GPU: 3 to 5 times.
   One of 10 M weights is limited by arithmetic on two cores, which batching does not reduce: 1.2 times.
4. Answers that share their prompt: arithmetic again, so as many times faster as there are fewer tokens, which leaves
   little where prompts are short: of 8 prompts by chance 1.1 times, of the 8 longest 1.6 times.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--responses", type=Path, default=ROOT.parent / "shared" / "real_decodes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    print(PREDICTIONS, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if "seeds" in args.only:
            times = one_engine_or_five(Path(folder), args.repeats)
            rows.append(row("5 seeds x 40 prompts: five processes / one engine", *times, "3 times faster"))
        if "loop" in args.only:
            times = engine_overhead(Path(folder), args.repeats + 2)
            what = "200 requests: `LLM.generate` / decode's loop with its journal"
            rows.append(row(what, *times, "at most 5 % slower (0.95)"))
    if "batched" in args.only:
        for size in ("tiny", "larger"):
            name, *times = batched_or_single(args.responses, size, args.repeats)
            rows.append(row(f"{name}: one at a time / batched", *times, "3 times faster"))
    if "shared" in args.only:
        for which in ("by chance", "longest"):
            name, *times = shared_or_apart(args.responses, which, args.repeats)
            rows.append(row(f"{name}: rows of their own / shared prompts", *times, "as the tokens"))
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Data generation, both sides in turn",
        f"\nMachine: {cores} cores, CPU only, {platform.machine()}. Date: {time.strftime('%Y-%m-%d')}. "
        f"Medians (all times in brackets).\n\nPrediction, written before the run:\n\n{PREDICTIONS}",
        "| what | before | ours | ratio | aim |",
        "|---|---|---|---|---|",
        *rows,
    ]
    report = "\n".join(lines) + "\n"
    print(report)
    args.out.write_text(report)


def row(what: str, theirs: list[float], ours: list[float], aim: str) -> str:
    shown = [f"{statistics.median(times):.2f} s ({', '.join(f'{t:.2f}' for t in times)})" for times in (theirs, ours)]
    return f"| {what} | {' | '.join(shown)} | {statistics.median(theirs) / statistics.median(ours):.2f} | {aim} |"


def in_turn(repeats: int, *sides: Callable[[int], None]) -> list[list[float]]:
    """Wall seconds of each side, run alternately."""
    times: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats):
        for side, seconds in zip(sides, times, strict=True):
            start = time.perf_counter()
            side(repeat)
            seconds.append(time.perf_counter() - start)
        print([f"{s[-1]:.2f}" for s in times], flush=True)
    return times


def one_engine_or_five(folder: Path, repeats: int) -> list[list[float]]:
    from tiny_models import tiny_llama

    model, prompts = tiny_llama(folder / "llama"), folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i} plus {i % 7}?"}) + "\n" for i in range(40)))
    command = [sys.executable, str(ROOT / "on_policy_data_gen" / "decode.py"), "--model", model, "--dtype", "float32"]
    command += ["--data_dir", str(prompts), "--max_tokens", "128", "--max_model_len", "512"]

    def decode(out: Path, *seeds: int) -> None:
        words = [*command, "--output_dir", str(out), "--seed", *map(str, seeds)]
        subprocess.run(words, check=True, capture_output=True)

    def five_processes(repeat: int) -> None:
        for seed in SEEDS:
            decode(folder / f"five_{repeat}_{seed}", seed)

    return in_turn(repeats, five_processes, lambda repeat: decode(folder / f"one_{repeat}", *SEEDS))


def engine_overhead(folder: Path, repeats: int) -> list[list[float]]:
    """The same requests through vLLM's own loop and through decode's, on one warm engine."""
    from simpo.engine.vllm import engine_settings
    from tiny_models import tiny_llama

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    settings = engine_settings(tiny_llama(folder / "larger", **sizes), "float32", 512, 1, None, False)
    return both_loops(folder, settings, make_requests(200, max_tokens=96), repeats)


def make_requests(count: int, **sampling: Any) -> list["Request"]:
    from simpo.engine.vllm import Request

    chance, sampling = random.Random(0), {"temperature": 0.8, "top_p": 0.95} | sampling
    prompts = [[0, *chance.choices(range(4, 300), k=chance.randint(20, 60))] for _ in range(count)]
    return [Request(str(i), ids, sampling | {"seed": i}) for i, ids in enumerate(prompts)]


def both_loops(
    folder: Path, settings: dict[str, Any], requests: Sequence["Request"], repeats: int
) -> list[list[float]]:
    """Seconds of vLLM's own loop, and of decode's."""
    from vllm import LLM, SamplingParams
    from vllm.inputs.engine import tokens_input

    from simpo.engine.guard import end_with_this_process
    from simpo.engine.vllm import generate
    from simpo.folder import Journal

    end_with_this_process()
    llm = LLM(**settings)

    def vllm_loop(repeat: int) -> None:
        params = [SamplingParams(**r.sampling) for r in requests]
        llm.generate([tokens_input(r.token_ids) for r in requests], params, use_tqdm=False)

    def our_loop(repeat: int) -> None:
        journal = Journal(folder, f"{repeat}.jsonl")
        for response in generate(llm.llm_engine, requests):
            journal.append({"prompt": response.key, "generated_text": response.text})

    vllm_loop(0)  # warm
    return in_turn(repeats, vllm_loop, our_loop)


def read_responses(folder: Path) -> list[tuple[str, str]]:
    """(prompt, response) of every seed."""
    rows = [row for path in sorted(folder.glob("output_*.json")) for row in json.loads(path.read_text())]
    return [(row["prompt"], row["generated_text"]) for row in rows]


def shared_or_apart(responses: Path, which: str, repeats: int) -> tuple[str, list[float], list[float]]:
    """The five answers to each of 8 prompts, each with its prompt, and in rows that run it once. Cut as below."""
    import torch

    from rewards import Options, load_reward_model
    from rewards.batches import shared_length
    from tiny_reward_models import tiny_classifier

    texts = read_responses(responses)
    prompts = sorted({prompt for prompt, _ in texts}, key=lambda prompt: (-len(prompt), prompt))
    chosen = set(prompts[:8] if which == "longest" else random.Random(0).sample(prompts, 8))
    units = [(prompt[: len(prompt) // 4 + 1], text[: len(text) // 4]) for prompt, text in texts if prompt in chosen]
    with tempfile.TemporaryDirectory() as folder:
        name = tiny_classifier(Path(folder), "llama", **LARGER)
        apart, shared = (load_reward_model(name, Options(shared_prompt=asked)) for asked in (False, True))
        for model in (apart, shared):
            model.load(torch.device("cpu"), torch.float32)
            list(model.score_batches(units))  # warm, and the first prompt tried
    tokens, run = sum(apart.encode(unit).length for unit in units), 0
    _, batches = shared.plan(units, lambda unit: False, "cpu")
    for batch in batches:
        for _, group in groupby(batch, key=lambda item: item[0][0]):
            sequences = [encoded.inputs["input_ids"] for _, encoded in group]
            run += sum(map(len, sequences)) - (len(sequences) - 1) * shared_length(sequences)
    title = f"5 answers to each of 8 prompts ({which}), {tokens:,} tokens or {run:,} ({tokens / run:.2f}), float32"
    sides = (lambda repeat, model=model: list(model.score_batches(units)) for model in (apart, shared))
    return title, *in_turn(repeats, *sides)


def batched_or_single(responses: Path, size: str, repeats: int) -> tuple[str, list[float], list[float]]:
    """Real responses, one at a time as the original does it (template, one forward pass), and through score_batches.

    Their texts are cut to a quarter, because the tiny tokenizer has about one token per character.
    """
    from tiny_reward_models import tiny_classifier

    texts = read_responses(responses)
    texts = random.Random(0).sample(texts, min(len(texts), 400 if size == "tiny" else 40))
    units = list(dict.fromkeys((prompt[: len(prompt) // 4 + 1], text[: len(text) // 4]) for prompt, text in texts))
    with tempfile.TemporaryDirectory() as folder:
        name = tiny_classifier(Path(folder), "llama", **({} if size == "tiny" else LARGER))
        lengths, weights, *times = score_both_ways(name, units, repeats)
    median = statistics.median(lengths)
    return f"{len(units)} responses of {median:.0f} tokens (median), {weights:.2g} M weights, float32", *times


def score_both_ways(
    name: str, units: Sequence[tuple[str, str]], repeats: int, device: str = "cpu", dtype: str = "float32"
) -> tuple[list[int], float, list[float], list[float]]:
    """The units' lengths in tokens, the model's weights in millions, and seconds one at a time and in batches."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rewards import load_reward_model

    model = load_reward_model(name)
    model.load(torch.device(device), getattr(torch, dtype))
    original = AutoModelForSequenceClassification.from_pretrained(name, dtype=getattr(torch, dtype)).to(device).eval()

    def single(repeat: int) -> None:
        for prompt, text in units:
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            ids = model.tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
            with torch.no_grad():
                original(ids.to(device)).logits.float().item()

    def batched(repeat: int) -> None:
        for _ in model.score_batches(units):
            pass

    batched(0)  # warm
    weights = sum(p.numel() for p in model.model.parameters()) / 1e6
    return [model.encode(unit).length for unit in units], weights, *in_turn(repeats, single, batched)


if __name__ == "__main__":
    main()
