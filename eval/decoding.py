"""How answers are sampled: the official tools' configuration files, read strictly, and the command line over them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from simpo.config.values import check_type
from simpo.console import UserError, warn

# what vLLM takes
RANGES = {
    "temperature": (0, 2),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
ENGINE_KEYS = {"dtype": str, "max_model_len": int, "tensor_parallel_size": int, "trust_remote_code": bool}


@dataclass(frozen=True)
class Decoding:
    """Sampling of one benchmark, in vLLM's terms."""

    temperature: float | None = None
    """0: greedy; None: the benchmark's own per question."""
    max_tokens: int = 2048
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)

    def sampling(self, temperature: float) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams; `temperature` counts where the decoding leaves it to the benchmark."""
        values = dataclasses.asdict(self)
        return values | {"temperature": temperature if self.temperature is None else self.temperature}


@dataclass(frozen=True)
class Settings:
    """What a configuration file says."""

    name: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    prompt_template: str | None = None
    """Text with {instruction}, instead of the chat template."""
    chat_template: str | None = None
    do_sample: bool = False
    """The published outputs were made with alpaca-eval 0.6.2 and do_sample: true."""


def refuse_unknown(path: str, content: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(map(str, content.keys() - known)):
        raise UserError(f"{path}: unknown key {unknown[0]!r} (known: {', '.join(sorted(known))})")


def checked(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """Sampling settings in the right types."""
    hints = {hint.name: hint.type for hint in dataclasses.fields(Decoding)}
    refuse_unknown(path, values, set(hints))
    return {key: check_type(key, value, hints[key], path) for key, value in values.items()}


def checked_engine(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """Engine settings in the right types; "torch_dtype" is an older name of dtype."""
    values = {{"torch_dtype": "dtype"}.get(key, key): value for key, value in values.items()}
    refuse_unknown(path, values, set(ENGINE_KEYS))
    return {key: check_type(key, value, ENGINE_KEYS[key], path) for key, value in values.items()}


def choose_decoding(
    defaults: dict[str, Any], settings: Settings, given: dict[str, Any], legacy_ae062: bool
) -> Decoding:
    """The benchmark's defaults, the configuration over them, the command line over both.

    alpaca-eval 0.6.2 set use_beam_search on vLLM's finished sampling parameters for do_sample: true. From vLLM's code
    of that time it is inferred (no record of the published runs says so) that this was a beam search of width 1, which
    takes the likeliest token each time. `legacy_ae062` does that; else the temperature counts.

    Raises:
        UserError: legacy_ae062 for a configuration (or benchmark) that never did that; a value out of range.
    """
    values = defaults | settings.decoding | {key: value for key, value in given.items() if value is not None}
    if legacy_ae062:
        if not settings.do_sample:
            raise UserError(
                "legacy_ae062: only an AlpacaEval configuration with do_sample: true was decoded greedily by "
                "alpaca-eval 0.6.2; this one samples as it says, drop --legacy_ae062"
            )
        values["temperature"] = 0.0
    elif settings.do_sample and values["temperature"]:
        warn(
            f"sampling at temperature {values['temperature']}; the published outputs were probably greedy: "
            "alpaca-eval 0.6.2 decoded this configuration so, as far as its code tells (--legacy_ae062 does the same)"
        )
    decoding = Decoding(**values)
    for key, (low, high) in RANGES.items():
        value = getattr(decoding, key)
        if value is not None and not low <= value <= high:
            raise UserError(f"{key}: must lie between {low} and {high}, got {value}")
    if not 0 < decoding.top_p <= 1:
        raise UserError(f"top_p: must lie in (0, 1], got {decoding.top_p}")
    if decoding.max_tokens < 1 or decoding.top_k < -1 or not 0 < decoding.repetition_penalty < float("inf"):
        raise UserError(
            "max_tokens: must be at least 1, top_k -1 (all tokens) or more, and repetition_penalty above 0, got "
            f"{decoding.max_tokens}, {decoding.top_k} and {decoding.repetition_penalty}"
        )
    if wrong := [number for number in decoding.stop_token_ids if number < 0]:
        raise UserError(f"stop_token_ids: {wrong[0]} is no token")
    return decoding
