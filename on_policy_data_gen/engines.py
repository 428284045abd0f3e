"""Engines that answer requests into a folder's journals: one here, or several side by side, each with its GPUs."""

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

from conversations import Prompt, to_json
from decoded import FIELDS
from simpo.console import UserError, command, progress
from simpo.engine.vllm import Request, generate, start_engine
from simpo.folder import Journal


def run_engines(
    folder: Path, engine: dict[str, Any], count: int, requests: list[Request], texts: dict[Prompt, str]
) -> None:
    """Run one engine here, or `count` engines in processes of their own.

    Args:
        engine: see `simpo.engine.vllm.engine_settings`.
        requests: their keys are (seed, prompt).
        texts: the prompts as the model sees them.

    Raises:
        UserError: too few GPUs, or an engine's process stopped.
    """
    if count == 1:
        return run_engine(0, folder, engine, requests, texts)
    environments = engine_environments(count, engine["tensor_parallel_size"])
    spawn, processes = multiprocessing.get_context("spawn"), []
    for rank in range(count):
        os.environ.update(environments[rank])  # inherited, because it must be there before torch is imported
        processes.append(spawn.Process(target=run_child, args=(rank, folder, engine, requests[rank::count], texts)))
        processes[-1].start()
    for process in processes:
        process.join()
    if failed := [str(rank) for rank, process in enumerate(processes) if process.exitcode != 0]:
        raise UserError(f"engine {', '.join(failed)} of {count} stopped (see above); the same command continues")


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


def run_child(*job: Any) -> None:
    """An engine's own process: ends with its parent, so that no orphan writes beside the next run."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    command(lambda: run_engine(*job))()


def run_engine(
    rank: int, folder: Path, engine: dict[str, Any], requests: list[Request], texts: dict[Prompt, str]
) -> None:
    """Answer the requests; append each response to its seed's journal as it finishes."""
    seeds = sorted({request.key[0] for request in requests})
    journals = {seed: Journal(folder, f"output_{seed}.{rank}.jsonl") for seed in seeds}
    llm, tokens = start_engine(engine), 0
    with progress(len(requests), f"engine {rank}", "response", position=rank) as bar:
        for response in generate(llm, requests):
            seed, prompt = response.key
            answer = (response.text, response.finish_reason, response.num_tokens)
            journals[seed].append(dict(zip(FIELDS, (to_json(prompt), texts[prompt], *answer), strict=True)))
            tokens += response.num_tokens
            bar.update()
            bar.set_postfix_str(f"{tokens / bar.format_dict['elapsed']:.0f} tokens/s", refresh=False)
