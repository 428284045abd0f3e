"""Values as the types of their settings: what text may stand for, and what does not fit."""

import difflib
import types
import typing
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any

from simpo.config.reading import brief, load_yaml
from simpo.console import UserError

COMMAND_LINE = "command line"


def check_type(key: str, value: Any, hint: Any, source: str) -> Any:
    """Return `value` as the type `hint`; text from the command line (or YAML's `5e-7`, a string to YAML) is converted.

    Raises:
        UserError: the value does not fit.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    where, kinds = f"{source}: {key}", typing.get_args(hint) if is_union else (hint,)
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
        bare = f"--{key} needs a value, or " if source == COMMAND_LINE and value is True else ""
        raise UserError(f"{where}: {value} does not fit: {bare}neither text (put it in quotes) nor a number")
    problem = ""
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum):
            return check_choice(key, value, [member.value for member in kind], source)
    for kind, reading in readings(value, hint, kinds, where):
        try:
            return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(reading)
        except PydanticSchemaGenerationError:  # a library's own class, which no text can spell
            return value
        except ValidationError as error:
            first = error.errors()[0]
            problem = problem or first["msg"] + (" {key: value}" if first["type"] == "dict_type" else "")
    raise UserError(f"{where}: {brief(value)} does not fit: {problem}")


def check_choice(key: str, value: Any, choices: Collection[Any] | None, source: str) -> Any:
    """Return the value, which must be one of the choices where a setting has them.

    Raises:
        UserError: it is not; names the nearest.
    """
    if choices is None or value is None or value in choices:
        return value
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    hint = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(map(str, choices))}"
    raise UserError(f"{source}: {key}: {brief(value)} does not fit: {hint}")


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
