"""One vLLM engine that answers conversations given as token ids, and hands over each answer as it finishes."""

import hashlib
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from simpo.console import UserError

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


class Request(NamedTuple):
    """One answer to make: `sampling` holds the arguments of vLLM's SamplingParams."""

    key: str | int
    token_ids: list[int]
    sampling: dict[str, Any]


class Answer(NamedTuple):
    """One finished answer. `finish_reason`: "stop", or "length" when max_tokens or the context cut it."""

    key: str | int
    text: str
    finish_reason: str
    num_tokens: int


def engine_version() -> str:
    """vLLM's version, without importing it.

    Raises:
        UserError: it is not installed.
    """
    packages = metadata.packages_distributions().get("vllm")
    if not packages:
        raise UserError("vLLM is not installed: pip install -e '.[gpu]' (or '.[cpu]')")
    return f"{packages[0]} {metadata.version(packages[0])}"


def noise_seed(seed: int, key: str | int, turn: int) -> int:
    """The seed of one answer's sampling, a number below 2^63, so that answers do not share their noise."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{turn}\n{key}".encode()).digest()[:8]) >> 1


def answers(engine: "LLMEngine", requests: list[Request]) -> Iterator[Answer]:
    """Yield answers as they finish. Stop tokens and special tokens are not part of the text."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    for number, request in enumerate(requests):
        params = SamplingParams(**request.sampling, skip_special_tokens=True, output_kind=RequestOutputKind.FINAL_ONLY)
        engine.add_request(str(number), tokens_input(request.token_ids), params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            best = output.outputs[0]
            key = requests[int(output.request_id)].key
            yield Answer(key, best.text, str(best.finish_reason), len(best.token_ids))
