"""What a Ray cluster costs: the same requests on the same engines in processes of this machine, and as Ray actors.

    ray start --head --num-cpus 2 && PYTHONPATH=on_policy_data_gen python benchmarks/engine_paths.py \
        --ray_address 127.0.0.1:6379 --out engine_paths.md

Both sides in turn; a side's time runs from the moment when all its engines are ready. Prints a Markdown report, with
the prediction written before the first run, and writes it to --out.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from engines import open_team
from simpo.engine.team import Dispatch, Team
from simpo.engine.vllm import Answerer, Request, engine_settings
from tiny_models import tiny_llama

PREDICTION = """\
A call to an actor takes about 1 ms more than one through a pipe, and there are two a second: under 1 %.
"""
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray_address", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(PREDICTION, flush=True)
    times: dict[str, list[float]] = {"processes": [], "Ray": []}
    texts = set()
    with tempfile.TemporaryDirectory() as folder:
        settings = engine_settings(tiny_llama(Path(folder), **SIZES), "float32", 512, 1, None, False)
        for _ in range(args.repeats):
            for side, address in (("processes", None), ("Ray", args.ray_address)):
                team = open_team(partial(Answerer, settings), settings["model"], args.engines, 1, address)
                seconds, found = run(team, requests(args.requests))
                times[side].append(seconds)
                texts.add(json.dumps(found))
            print({side: f"{values[-1]:.2f}" for side, values in times.items()}, flush=True)
    assert len(texts) == 1, "the two sides gave other texts"
    local, ray = (statistics.median(times[side]) for side in ("processes", "Ray"))
    shown = {side: ", ".join(f"{seconds:.2f}" for seconds in values) for side, values in times.items()}
    rows = [f"| {side} | {statistics.median(times[side]):.2f} | {each} |" for side, each in shown.items()]
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Engines in processes and as Ray actors, in turn",
        f"\n{args.engines} engines, {args.requests} requests of up to 96 tokens, {cores} cores, CPU only, "
        f"{time.strftime('%Y-%m-%d')}.\n\nPrediction, written before the run: {PREDICTION}",
        "| engines in | median s | all |",
        "|---|---|---|",
        *rows,
        f"\nRay takes {100 * (ray / local - 1):+.1f} % (aim: at most 5 %). The texts are the same.",
    ]
    args.out.write_text("\n".join(lines) + "\n")
    print(args.out.read_text())


def requests(count: int) -> list[list[Request]]:
    chance, sampling = random.Random(0), {"temperature": 0.8, "top_p": 0.95, "max_tokens": 96}
    ids = [[0, *chance.choices(range(4, 300), k=chance.randint(20, 60))] for _ in range(count)]
    return [[Request(i, each, sampling | {"seed": i})] for i, each in enumerate(ids)]


def run(team: Team, groups: list[list[Request]]) -> tuple[float, list[str]]:
    """Seconds and texts, from when every engine is ready."""
    work = Dispatch(team, iter(()), len(groups) / team.count)
    for member in range(team.count):
        team.open(member)
    while work.starting:
        for member, answer in team.answers():
            list(work.take(member, answer))
    work.groups = iter(groups)
    start = time.perf_counter()
    found = {result.item.key: result.value.text for result in work.run()}
    seconds = time.perf_counter() - start
    team.close()
    return seconds, [found[key] for key in sorted(found)]


if __name__ == "__main__":
    main()
