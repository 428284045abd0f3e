"""Configuration: the arguments shared by all scripts, and the parser of `script.py config.yaml --key=value`."""

import dataclasses
import difflib
import reprlib
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from simpo.console import UserError, warn

# Spellings of older versions, read as today's. A callable turns (value) into {new key: value}.
OLD_SPELLINGS: dict[str, typing.Callable[[Any], dict[str, Any]]] = {
    "evaluation_strategy": lambda v: {"eval_strategy": v},
    "dtype": lambda v: {"torch_dtype": v},
    # transformers >= 5 reads a number of warm-up steps below 1 as a ratio
    "warmup_ratio": lambda v: {"warmup_steps": float(v)} if v else {},
    "no_cuda": lambda v: {"use_cpu": v},
    "group_by_length": lambda v: {"train_sampling_strategy": "group_by_length"} if v else {},
    "max_seq_length": lambda v: {"max_length": v},
    "tokenizer": lambda v: {"tokenizer_name_or_path": v},
    # no longer settings: weights are always safetensors, a run always resumes, the tracker picks its folder
    "overwrite_output_dir": lambda v: {},
    "save_safetensors": lambda v: {},
    "logging_dir": lambda v: {},
}
RENAMED_SILENTLY = {"dtype"}  # both spellings are current: `dtype` is transformers' name for it
shortened = reprlib.Repr()
shortened.maxstring = shortened.maxother = 80
brief = shortened.repr  # values in messages, whatever their size


@dataclass
class ModelArguments:
    """Which model to train, in which precision, and whether through LoRA adapters."""

    base_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the base model, when model_name_or_path is a LoRA adapter."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to train: hub name or folder."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    model_code_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model's own code (trust_remote_code)."}
    )
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = field(
        default=None,
        metadata={
            "help": "Precision of the weights (also spelt dtype). Not given: float32 (a frozen base model under LoRA "
            "with bf16: the checkpoint's own); bf16 arithmetic comes from mixed precision."
        },
    )
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer, when not the model's."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flash_attention_2 (sdpa where that cannot run)."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Modules that get adapters."})
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole and saved beside the adapters."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Base weights in 8 bits (CUDA, use_peft)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Base weights in 4 bits: QLoRA (CUDA, use_peft)."})
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = field(default="nf4", metadata={"help": "4-bit number format."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize the quantization constants too."})
    bnb_4bit_quant_storage: str = field(
        default="uint8", metadata={"help": "Storage type of 4-bit weights (bfloat16 for FSDP and ZeRO-3)."}
    )

    def __post_init__(self):
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("load_in_8bit and load_in_4bit are both true: choose one.")
        if (self.load_in_8bit or self.load_in_4bit) and not self.use_peft:
            raise UserError("load_in_4bit/load_in_8bit need use_peft: true (quantized weights cannot be trained).")


@dataclass
class DataArguments:
    """Which datasets to train on and how conversations become text."""

    chat_template: str | None = field(
        default=None,
        metadata={"help": "A Jinja template, a .jinja file, or a built-in one: gemma2, llama3, mistral, zephyr."},
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Variables of the chat template, such as {enable_thinking: false}. A template that writes the day "
            "gets one date for the run: {strftime_now: 2026-11-24}, by default today; a run that goes on keeps it."
        },
    )
    dataset_mixer: dict[str, float] | None = field(
        default=None, metadata={"help": "{hub name or folder: fraction of its training rows}."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that receives the formatted text (SFT)."})
    dataset_splits: list[str] = field(
        default_factory=lambda: ["train", "test"],
        metadata={"help": "Splits to load: names with 'train' are trained on, names with 'test' evaluated."},
    )
    dataset_configs: list[str] | None = field(
        default=None, metadata={"help": "Configuration name of each dataset in dataset_mixer, in order."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that prepare data."})
    truncation_side: Literal["left", "right"] | None = field(
        default=None, metadata={"help": "Side the tokenizer cuts; left when not given."}
    )
    auto_insert_empty_system_msg: bool = field(
        default=True,
        metadata={"help": "Give conversations without a system message an empty one, if the template has one."},
    )
    header_in_prompt: bool = field(
        default=False,
        metadata={
            "help": "Count the assistant header (Llama-3) as prompt. The published models were trained with it in the "
            "response, where it is part of the loss and of the length."
        },
    )


class H4ArgumentParser(HfArgumentParser):
    """Parses `script.py [config.yaml] [--key=value | --key value] ...` into the given dataclasses.

    The YAML is read first, then the overrides. Every value is checked against its field's type; an unknown key, a
    wrong type or an invalid value is a UserError that names the key.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any):
        super().__init__(dataclass_types, conflict_handler="resolve", **kwargs)

    def parse(self, argv: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None) -> Any:
        """Return one instance per dataclass (the bare instance if there is only one).

        Args:
            argv: command line without the script's name; `sys.argv[1:]` by default.
            defaults: values of keys that neither the YAML nor the command line gives.

        Raises:
            UserError: the YAML is missing or malformed, a key is unknown, a value has the wrong type.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if "-h" in argv or "--help" in argv:
            self.print_help()
            sys.exit(0)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        if argv and not argv[0].startswith("--"):
            path = argv.pop(0)
            for key, value in read_yaml(path).items():
                values[key], sources[key] = value, path
        for key, value in split_overrides(argv).items():
            values[key], sources[key] = value, "command line"

        values, sources = self._modernize(values, sources)
        for key, value in (defaults or {}).items():
            if key not in values:
                values[key], sources[key] = value, "default"
        fields = {cls: {f.name for f in dataclasses.fields(cls) if f.init} for cls in self.dataclass_types}
        known = set().union(*fields.values())
        outputs = []
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{sources[key]}: unknown key {brief(key)}{hint}")
        for cls in self.dataclass_types:
            hints = typing.get_type_hints(cls)
            checked = {
                key: check_type(key, value, hints[key], sources[key])
                for key, value in values.items()
                if key in fields[cls]  # a key that two classes share goes to both
            }
            try:
                outputs.append(cls(**checked))
            except (ValueError, TypeError, NotImplementedError, ImportError) as error:
                raise UserError(f"{next(iter(sources.values()), 'command line')}: {error}") from error
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _modernize(self, values: dict[str, Any], sources: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read old spellings as today's, with one warning line for all of them."""
        known = {f.name for cls in self.dataclass_types for f in dataclasses.fields(cls)}
        new_values, new_sources, notes = {}, {}, []
        for key, value in values.items():
            replaced = {key: value}
            if key in OLD_SPELLINGS and key not in known:
                replaced = OLD_SPELLINGS[key](value)
                if key not in RENAMED_SILENTLY:
                    notes.append(f"{key} -> {', '.join(replaced) or 'ignored'}")
            for new_key, new_value in replaced.items():
                new_values[new_key], new_sources[new_key] = new_value, sources[key]
        if notes:
            warn(f"old spellings read as today's: {'; '.join(notes)}")
        return new_values, new_sources


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {brief(key.value)} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> Any:
    """Read YAML.

    Raises:
        UserError: not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    # PyYAML's own reading of numbers, dates, tags and deep nesting raises more than YAMLError
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        problem = str(error).replace('in "<unicode string>", ', "")
        raise UserError(f"{source}: not valid YAML: {problem}") from error


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, not YAML, not a mapping at the top level, or a key is no text or stands twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file") from error
    except (OSError, ValueError) as error:  # a folder, a name that is too long, not UTF-8
        raise UserError(f"{brief(path)}: cannot be read as a configuration file: {type(error).__name__}") from error
    content = load_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold `key: value` lines, found {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {brief(key)} is not text")
    return content


def split_overrides(argv: Sequence[str]) -> dict[str, Any]:
    """Split `--key=value`, `--key value`, `--key v1 v2` and a bare `--flag` (true) into a dict of strings or lists."""
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if not token.startswith("--"):
            raise UserError(f"command line: expected --key=value, found {brief(token)}")
        key, equals, value = token[2:].partition("=")
        if not equals:
            words = []
            while position < len(argv) and not argv[position].startswith("--"):
                words.append(argv[position])
                position += 1
            value = words if len(words) > 1 else words[0] if words else "true"
        overrides[key.replace("-", "_")] = value
    return overrides


def check_type(key: str, value: Any, hint: Any, source: str) -> Any:
    """Return `value` as the type `hint`; text from the command line (or YAML's `5e-7`, a string to YAML) is converted.

    Raises:
        UserError: the value does not fit.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    where, kinds = f"{source}: {key}", typing.get_args(hint) or (hint,)
    if value is False and key.endswith("_strategy"):  # an unquoted `no` is false to YAML
        value = "no"
    if value is None or (type(None) in kinds and value in ("null", "None")):
        if type(None) in kinds:
            return None
        raise UserError(f"{where} cannot be null")
    for text in texts(value):
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            raise UserError(f"{where}: {brief(text)} holds a character that no file or text can hold")
    if isinstance(value, bool) and not accepts_bool(hint):  # true is not the number 1
        raise UserError(f"{where}: {value} does not fit: neither text (put it in quotes) nor a number")
    problem = ""
    for kind, reading in readings(value, hint, kinds, where):
        try:
            return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(reading)
        except PydanticSchemaGenerationError:  # a library's own class, which no text can spell
            return value
        except ValidationError as error:
            problem = problem or error.errors()[0]["msg"]
    raise UserError(f"{where}: {brief(value)} does not fit: {problem}")


def texts(value: Any) -> Iterator[str]:
    """The texts in a value, one level deep."""
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            yield part


def readings(value: Any, hint: Any, kinds: tuple[Any, ...], where: str) -> Iterator[tuple[Any, Any]]:
    """What a value may stand for, the likeliest first, each with the type to try. Where text may stand, text is text.

    Raises:
        UserError: a mapping or list as text is not valid YAML.
    """
    if not isinstance(value, str):
        yield hint, value
        if isinstance(value, int):
            yield hint, str(value)
        if isinstance(value, int | float):
            yield hint, [value]  # one number where a list may stand
    elif str in kinds:
        yield from ((kind, value) for kind in kinds if kind in (bool, int, float))
        if value.startswith("{") and any(dict in (kind, typing.get_origin(kind)) for kind in kinds):
            yield hint, load_yaml(value, where)
        yield hint, value
    else:
        yield hint, value
        if value.startswith(("{", "[")):
            yield hint, load_yaml(value, where)
        else:
            yield hint, [part.strip() for part in value.split(",")]


def accepts_bool(hint: Any) -> bool:
    return hint is bool or any(accepts_bool(part) for part in typing.get_args(hint))
