"""One vLLM engine that answers requests and hands over each response as it finishes. Imports vLLM only when started."""

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from simpo.console import UserError

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

WAITING = 2048  # requests handed to the engine ahead of time: more than it runs at once, far fewer than all


class Request(NamedTuple):
    """One response to make."""

    prompt: str
    token_ids: list[int]
    seed: int  # the run's seed, which names the output file
    noise: int  # the seed of this request's own sampling


class Response(NamedTuple):
    """One finished response. `finish_reason`: "stop", or "length" when max_tokens or the context cut it."""

    request: Request
    text: str
    finish_reason: str
    num_tokens: int


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
) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs: what the user chose, and what its CPU build needs.

    On a CPU requests with seeds of their own fail under chunked prefill, and compiling takes longer than it saves.

    Raises:
        UserError: unknown attention_backend, or vLLM cannot read the model.
    """
    set_defaults()
    from vllm.platforms import current_platform

    settings: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
        "trust_remote_code": trust_remote_code,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if attention_backend is not None:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum as Backend

        if attention_backend.upper() not in Backend.__members__:
            raise UserError(f"attention_backend: {attention_backend!r} is none of {', '.join(Backend.__members__)}")
        settings["attention_backend"] = Backend[attention_backend.upper()]
    if current_platform.is_cpu():
        settings |= {"enforce_eager": True, "enable_chunked_prefill": False}
        settings["max_num_batched_tokens"] = max(context_length(settings), 8192)
    return settings


@contextmanager
def refusals(model: str) -> Iterator[None]:
    """What vLLM raises about a model or its settings becomes a UserError."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
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
    """Load the model.

    Raises:
        UserError: vLLM refuses the model or a setting, or does not have the memory.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    with refusals(settings["model"]):
        return LLMEngine.from_engine_args(EngineArgs(**settings))


def generate(
    engine: "LLMEngine", requests: list[Request], temperature: float, top_p: float, max_tokens: int
) -> Iterator[list[Response]]:
    """Yield the responses that each step of the engine finished (often none)."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    waiting = deque(enumerate(requests))
    while waiting or engine.has_unfinished_requests():
        while waiting and engine.get_num_unfinished_requests() < WAITING:
            number, request = waiting.popleft()
            params = SamplingParams(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=request.noise,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(number), tokens_input(request.token_ids), params)
        finished = []
        for output in engine.step():
            best = output.outputs[0]
            request = requests[int(output.request_id)]
            finished.append(Response(request, best.text, best.finish_reason, len(best.token_ids)))
        yield finished
