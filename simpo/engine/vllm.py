"""One vLLM engine that answers requests and hands over each response as it finishes. Imports vLLM only when started."""

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simpo.console import UserError
from simpo.engine.guard import end_with_this_process
from simpo.engine.team import Lost
from simpo.model_files import check_whole_model

if TYPE_CHECKING:
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.engine.llm_engine import LLMEngine

WAITING = 2048  # requests handed to the engine ahead of time: more than it runs at once, far fewer than all
AT_A_TIME = 0.5  # seconds of work between two looks at what else there is to do


class Request(NamedTuple):
    """One response to make."""

    key: Any
    """What the caller knows the response by."""
    token_ids: list[int]
    sampling: dict[str, Any]
    """Arguments of vLLM's SamplingParams: temperature, top_p, max_tokens, seed, stop_token_ids, ..."""


class Response(NamedTuple):
    """One finished response; stop tokens and special tokens are not part of the text."""

    key: Any
    text: str
    finish_reason: str
    """"stop", or "length" when max_tokens or the context cut it."""
    num_tokens: int


def noise_seed(*names: Any) -> int:
    """The seed of one request's sampling, a number below 2^63 from what names the request.

    With one seed for all requests their sampling noise would be identical.
    """
    return int.from_bytes(hashlib.sha256("\n".join(map(str, names)).encode()).digest()[:8]) >> 1


def engine_version() -> str:
    """vLLM's version, without importing it.

    Raises:
        UserError: it is not installed.
    """
    packages = metadata.packages_distributions().get("vllm")
    if not packages:
        raise UserError("vLLM is not installed: pip install -e '.[gpu]' (or '.[cpu]')")
    return f"{packages[0]} {metadata.version(packages[0])}"


def set_defaults() -> None:
    """vLLM's environment, where the user has not set it. Must come before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # a forked worker would inherit the folder's lock and hold it after this process was killed
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    import torch

    if not torch.cuda.is_available():
        level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns of every setting that the CPU needs
        logging.getLogger("vllm").setLevel(level)
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # starts in a third of the time


def engine_settings(
    model: str,
    dtype: str,
    max_model_len: int | None,
    tensor_parallel_size: int,
    attention_backend: str | None,
    trust_remote_code: bool,
    max_num_seqs: int | None = None,
    gpu_memory_utilization: float | None = None,
) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs: what the user chose, and what its CPU build needs.

    On a CPU requests with seeds of their own fail under chunked prefill, and compiling takes longer than it saves.

    Args:
        max_num_seqs: responses made at a time; None: vLLM's default for the device.
        gpu_memory_utilization: part of each GPU's memory to fill; None: vLLM's default.

    Raises:
        UserError: unknown attention_backend; an adapter or damaged files; or vLLM cannot read the model.
    """
    check_whole_model(model, "model")
    set_defaults()
    from vllm.platforms import current_platform

    settings: dict[str, Any] = {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,  # workers have folders of their own
        "dtype": dtype,
        "max_model_len": max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
        "trust_remote_code": trust_remote_code,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    given = {"max_num_seqs": max_num_seqs, "gpu_memory_utilization": gpu_memory_utilization}
    settings |= {name: value for name, value in given.items() if value is not None}
    if attention_backend is not None:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum as Backend

        if attention_backend.upper() not in Backend.__members__:
            raise UserError(f"attention_backend: {attention_backend!r} is none of {', '.join(Backend.__members__)}")
        settings["attention_backend"] = attention_backend.upper()
    if current_platform.is_cpu():
        settings |= {"enforce_eager": True, "enable_chunked_prefill": False}
        settings["max_num_batched_tokens"] = max(context_length(settings), 8192)
    return settings


@contextmanager
def losses() -> Iterator[None]:
    """The end of the engine's process, which says more itself, becomes a `Lost`."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise Lost("the engine's process has ended (see above); the same command continues") from error


@contextmanager
def refusals(model: str) -> Iterator[None]:
    """What vLLM raises about a model or its settings, of any type, becomes a UserError: nothing else runs in here."""
    try:
        yield
    except Exception as error:
        raise UserError(f"vLLM cannot start {model}: {error}") from error


def context_length(settings: dict[str, Any]) -> int:
    """The longest prompt and response together, in tokens: max_model_len, or the model's own.

    Raises:
        UserError: vLLM cannot read the model, or refuses a setting.
    """
    from vllm.engine.arg_utils import EngineArgs

    with refusals(settings["model"]):
        return EngineArgs(**settings).create_model_config().max_model_len


def start_engine(settings: dict[str, Any]) -> "LLMEngine":
    """Load the model, with vLLM's defaults for offline use. The engine's processes end with this one.

    Raises:
        UserError: vLLM refuses the model or a setting, or does not have the memory.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    set_defaults()
    end_with_this_process()
    with refusals(settings["model"]):
        engine = LLMEngine.from_engine_args(EngineArgs(**settings), usage_context=UsageContext.LLM_CLASS)
    threading.Thread(target=tell_of_death, args=(engine.engine_core,), daemon=True).start()
    return engine


def tell_of_death(client: "EngineCoreClient") -> None:
    """Let `LLMEngine.step` raise when the engine's process has ended; vLLM's own watch leaves it waiting for ever."""
    from vllm.v1.engine.core_client import SyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(client, SyncMPClient):
        wait(client.resources.engine_manager.sentinels())
        client.outputs_queue.put(EngineDeadError())


def add(engine: "LLMEngine", number: int, request: Request) -> None:
    """Hand a request to the engine, which knows it by its number.

    Raises:
        UserError: the engine refuses it.
    """
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    try:
        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **request.sampling)
        with losses():
            engine.add_request(str(number), tokens_input(request.token_ids), params)
    except (ValueError, OverflowError) as error:
        raise UserError(f"vLLM refuses the request {str(request.key)[:60]!r}: {error}") from error


def step(engine: "LLMEngine") -> Iterator[tuple[int, str, str, int]]:
    """Compute a token of each request: (number, text, finish_reason, num_tokens) of those that it finishes."""
    with losses():
        finished = engine.step()
    for output in finished:
        best = output.outputs[0]
        yield int(output.request_id), best.text, str(best.finish_reason), len(best.token_ids)


def generate(engine: "LLMEngine", requests: Sequence[Request]) -> Iterator[Response]:
    """Yield each response as it finishes, in any order.

    Raises:
        UserError: the engine refuses a request, or its process has ended.
    """
    waiting = deque(enumerate(requests))
    while waiting or engine.has_unfinished_requests():
        while waiting and engine.get_num_unfinished_requests() < WAITING:
            add(engine, *waiting.popleft())
        for number, *response in step(engine):
            yield Response(requests[number].key, *response)


class Answerer:
    """An engine as a worker of a team (see team.py): its items are requests, its results responses."""

    def __init__(self, settings: dict[str, Any]):
        self.settings, self.keys = settings, {}

    def start(self) -> dict[str, Any]:
        self.engine = start_engine(self.settings)
        running = self.engine.vllm_config.scheduler_config.max_num_seqs
        return {"capacity": 2 * running}  # as many wait, so that it never does

    def work(self, items: Sequence[tuple[int, Request]]) -> list[tuple[int, Response]]:
        for number, request in items:
            add(self.engine, number, request)
            self.keys[number] = request.key
        done, end = [], time.monotonic() + AT_A_TIME
        while self.engine.has_unfinished_requests() and time.monotonic() < end:
            done += [(number, Response(self.keys.pop(number), *rest)) for number, *rest in step(self.engine)]
        return done
