"""Engines that answer requests: one here, several side by side, or over a cluster. The journals are written here."""

import math
import os
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from conversations import Prompt, to_json
from decoded import FIELDS
from simpo.console import UserError, progress
from simpo.engine.team import Here, Processes, Team, Worker, dispatch
from simpo.engine.vllm import Answerer, Request
from simpo.folder import Journal


def run_engines(
    folder: Path,
    engine: dict[str, Any],
    count: int,
    requests: list[Request],
    texts: dict[Prompt, str],
    ray_address: str | None,
) -> set[Prompt]:
    """Answer the requests; append each response to its seed's journal as it finishes.

    Args:
        engine: see `simpo.engine.vllm.engine_settings`.
        requests: their keys are (seed, prompt).
        texts: the prompts as the model sees them.
        ray_address: of a Ray cluster, over which the `count` engines are spread; None: they are on this machine.

    Returns:
        Prompts that engine after engine was lost over.

    Raises:
        UserError: too few GPUs, no cluster, or no engine is left.
    """
    groups: dict[Prompt, list[Request]] = defaultdict(list)
    for request in requests:  # all seeds of a prompt to one engine, which computes the prompt once
        groups[request.key[1]].append(request)
    seeds = sorted({request.key[0] for request in requests})
    journals = {seed: Journal(folder, f"output_{seed}.0.jsonl") for seed in seeds}
    team = open_team(partial(Answerer, engine), engine["model"], count, engine["tensor_parallel_size"], ray_address)
    tokens, lost, start = dict.fromkeys(range(count), 0), set(), time.monotonic()
    with progress(len(requests), "decoding", "response") as bar:
        for member, request, response in dispatch(team, groups.values(), math.ceil(len(requests) / count)):
            seed, prompt = request.key
            bar.update()
            if response is None:
                lost.add(prompt)
                continue
            answer = (response.text, response.finish_reason, response.num_tokens)
            journals[seed].append(dict(zip(FIELDS, (to_json(prompt), texts[prompt], *answer), strict=True)))
            tokens[member] += response.num_tokens
            bar.set_postfix_str(rates(team, tokens, time.monotonic() - start), refresh=False)
    return lost


def open_team(make: partial[Worker], model: str, count: int, gpus_each: int, ray_address: str | None) -> Team:
    """Places for `count` workers with so many GPUs each: on this machine, or on those of a cluster."""
    if ray_address is not None:
        from simpo.engine.cluster import Cluster

        return Cluster(ray_address, model, make, count, gpus_each)
    import torch

    on_gpus = torch.cuda.is_available()
    return Here(make, on_gpus) if count == 1 else Processes(make, engine_environments(count, gpus_each), on_gpus)


def rates(team: Team, tokens: dict[int, int], seconds: float) -> str:
    return ", ".join(f"{team.name(member)}: {count / seconds:.0f} tokens/s" for member, count in tokens.items())


def engine_environments(count: int, gpus_each: int) -> list[dict[str, str]]:
    """Environment variables that give each of `count` engines its own GPUs, or its share of the CPU's threads.

    Raises:
        UserError: there are fewer GPUs than the engines need.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        return [{"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}] * count
    if gpus < count * gpus_each:
        raise UserError(f"data_parallel_size {count} x tensor_parallel_size {gpus_each} needs more than {gpus} GPUs")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[r * gpus_each : (r + 1) * gpus_each])} for r in range(count)]
