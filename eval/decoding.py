"""How answers are sampled: the official tools' configuration files, read strictly."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mt_bench import TEMPERATURES
from simpo.config import check_type, read_yaml
from simpo.console import UserError, warn

DEFAULTS: dict[str, dict[str, Any]] = {
    "alpacaeval2": {"temperature": 0.0, "max_tokens": 2048},
    "arenahard": {"temperature": 0.0, "max_tokens": 4096},
    "mt-bench": {"temperature": None, "max_tokens": 1024},
}
ENGINE_KEYS = {"dtype": str, "max_model_len": int, "tensor_parallel_size": int, "trust_remote_code": bool}
DO_SAMPLE = "do_sample"


@dataclass(frozen=True)
class Decoding:
    """Sampling of one benchmark, in vLLM's terms."""

    temperature: float | None = None
    """0: greedy; None: MT-Bench's own per category."""
    max_tokens: int = 2048
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)

    def of_category(self, category: str) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams for a question of a category (MT-Bench's; else any text)."""
        values = dataclasses.asdict(self)
        if self.temperature is None:
            values["temperature"] = TEMPERATURES.get(category, 0.7)
        return values


@dataclass(frozen=True)
class Settings:
    """What a configuration file says."""

    name: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    prompt_template: str | None = None
    """AlpacaEval: text with {instruction}, instead of the chat template."""
    chat_template: str | None = None
    do_sample: bool = False
    """The published outputs were made with alpaca-eval 0.6.2 and do_sample: true."""


def read_settings(benchmark: str, path: str | None) -> Settings:
    """Read alpaca-eval's model YAML, a folder with Arena-Hard's two, or an MT-Bench YAML (gen_model_answer's flags).

    Raises:
        UserError: no such file, another benchmark's, or a key it does not know.
    """
    if path is None:
        return Settings()
    if benchmark == "arenahard":
        return read_arenahard(Path(path))
    content = read_yaml(path)
    return read_alpacaeval2(path, content) if benchmark == "alpacaeval2" else read_mt_bench(path, content)


def read_alpacaeval2(path: str, content: dict[str, Any]) -> Settings:
    if len(content) != 1 or not isinstance(entry := next(iter(content.values())), dict):
        raise UserError(f"{path}: an AlpacaEval configuration has one key, the generator's name, with settings below")
    known = {"prompt_template", "fn_completions", "completions_kwargs", "pretty_name", "link", DO_SAMPLE}
    refuse_unknown(path, entry, known)
    for key in ("prompt_template", "completions_kwargs"):
        if key not in entry:
            raise UserError(f"{path}: has no {key}; is it an AlpacaEval configuration?")
    kwargs = dict(entry["completions_kwargs"])
    kwargs.pop("model_name", None)
    kwargs.pop("batch_size", None)  # the engine's own matter
    engine, in_kwargs = kwargs.pop("model_kwargs", None) or {}, kwargs.pop(DO_SAMPLE, False)
    if "max_new_tokens" in kwargs:
        kwargs["max_tokens"] = kwargs.pop("max_new_tokens")
    return Settings(
        name=str(next(iter(content))),
        decoding=checked(path, kwargs),
        engine=checked_engine(path, engine),
        prompt_template=read_template(Path(path), entry["prompt_template"]),
        do_sample=bool(entry.get(DO_SAMPLE, in_kwargs)),
    )


def read_template(config: Path, template: str) -> str:
    """The prompt's text: as given, or of a file beside the configuration, in its parent, or in the current folder.

    Raises:
        UserError: no such file, or no place for the instruction in it.
    """
    text = template
    if "{instruction}" not in template:
        places = [folder / template for folder in (config.parent, config.parent.parent, Path())]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise UserError(f"{config}: prompt_template: there is no file {template} beside it or in the folder above")
        text = file.read_text(encoding="utf-8")
    if text.count("{instruction}") != 1:
        raise UserError(f"{config}: prompt_template: {template} must hold {{instruction}} exactly once")
    return text


def read_arenahard(folder: Path) -> Settings:
    folder = folder.parent if folder.is_file() else folder
    answers = read_yaml(str(folder / "gen_answer_config.yaml"))
    refuse_unknown(
        str(folder), answers, {"name", "bench_name", "temperature", "max_tokens", "num_choices", "model_list"}
    )
    if answers.get("num_choices", 1) != 1:
        raise UserError(f"{folder}: num_choices: Arena-Hard v0.1 judges one answer, found {answers['num_choices']}")
    endpoints = read_yaml(str(folder / "api_config.yaml"))
    models = answers.get("model_list") or list(endpoints)
    if len(models) != 1 or models[0] not in endpoints:
        raise UserError(f"{folder}: model_list must name one model of api_config.yaml, found {models}")
    endpoint = endpoints[models[0]]
    chat_template = endpoint.get("chat_template")
    if chat_template is not None and not (folder / chat_template).is_file():
        raise UserError(f"{folder}: chat_template: there is no file {folder / chat_template}")
    return Settings(
        name=str(models[0]),
        decoding=checked(str(folder), {key: answers[key] for key in ("temperature", "max_tokens") if key in answers}),
        chat_template=chat_template and str(folder / chat_template),
    )


def read_mt_bench(path: str, content: dict[str, Any]) -> Settings:
    refuse_unknown(path, content, {"model_path", "model_id", "max_new_token", "dtype", "chat_template"})
    if "max_new_token" not in content:
        raise UserError(f"{path}: has no max_new_token; is it an MT-Bench configuration?")
    return Settings(
        name=content.get("model_id"),
        decoding=checked(path, {"max_tokens": content["max_new_token"]}),
        engine=checked_engine(path, {"dtype": content["dtype"]} if "dtype" in content else {}),
        chat_template=content.get("chat_template"),
    )


def refuse_unknown(path: str, content: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(content.keys() - known):
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


def choose_decoding(benchmark: str, settings: Settings, given: dict[str, Any], legacy_ae062: bool) -> Decoding:
    """The benchmark's defaults, the configuration over them, the command line over both.

    alpaca-eval 0.6.2 switched a beam search of width 1 on for do_sample: true, so what passed for sampling at the
    configured temperature took the likeliest token each time. `legacy_ae062` does that; else temperature counts.

    Raises:
        UserError: legacy_ae062 for a configuration (or benchmark) that never did that; a value out of range.
    """
    values = DEFAULTS[benchmark] | settings.decoding | {key: value for key, value in given.items() if value is not None}
    if legacy_ae062:
        if not settings.do_sample:
            raise UserError(
                "legacy_ae062: only an AlpacaEval configuration with do_sample: true was decoded greedily by "
                "alpaca-eval 0.6.2; this one samples as it says, drop --legacy_ae062"
            )
        values["temperature"] = 0.0
    elif settings.do_sample and values["temperature"]:
        warn(
            f"sampling at temperature {values['temperature']}; alpaca-eval 0.6.2, which made the published outputs, "
            "decoded this configuration greedily (--legacy_ae062 does the same)"
        )
    decoding = Decoding(**values)
    if decoding.temperature is not None and decoding.temperature < 0:
        raise UserError(f"temperature: must be at least 0, got {decoding.temperature}")
    if not 0 < decoding.top_p <= 1:
        raise UserError(f"top_p: must lie in (0, 1], got {decoding.top_p}")
    if decoding.max_tokens < 1:
        raise UserError(f"max_tokens: must be at least 1, got {decoding.max_tokens}")
    return decoding
