"""The variables of a chat template, written into the template itself.

`chat_template_kwargs` (such as enable_thinking: false) become defaults in front of the template, and a template that
asks for the day (`strftime_now`) gets one date. The tokenizer carries the result, so training, decode and evaluation
render alike on every day, the trained model is saved with what it was trained on, and nothing else has to pass the
variables on. A template without either stays as it is.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from simpo.console import UserError, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "strftime_now"  # the function by which templates ask for the day; as a variable, the day itself
RESERVED = {"messages", "tools", "documents", "add_generation_prompt"}
ASKS_DATE = re.compile(DATE + r"""\(\s*(?:format\s*=\s*)?(['"])(.*?)\1\s*\)""")


def fix_variables(
    tokenizer: "PreTrainedTokenizerBase", template: str, variables: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Give the tokenizer a template with its variables fixed.

    Args:
        template: Jinja text.
        variables: the `chat_template_kwargs` setting: {name: JSON value}; `strftime_now: 2026-11-24` is the date to
            write (by default today, where the template asks for the day).

    Returns:
        The variables, the date included if the template writes one; None where there are none. Record them with what
        is made, and pass them again (see `keep_date`) when it is continued.

    Raises:
        UserError: a variable has no valid name, belongs to the conversation, or is no date where one is needed.
    """
    variables = dict(variables or {})
    lines = []
    if DATE in template and f"macro {DATE}" not in template:
        today = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], chat_template="{{ strftime_now('%Y-%m-%d') }}", tokenize=False
        )
        day = variables[DATE] = read_date(variables.get(DATE, today))
        formats = {match[2]: date.fromisoformat(day).strftime(match[2]) for match in ASKS_DATE.finditer(template)}
        lines.append(
            f"{{%- macro {DATE}(format) -%}}{{{{- {literal(formats)}[format] or raise_exception("
            f"'the template asks for the day in a format that it does not spell out') -}}}}{{%- endmacro %}}"
        )
    for name, value in variables.items():
        if not name.isidentifier() or name in RESERVED:
            raise UserError(f"chat_template_kwargs: {name!r} cannot be set")
        if not re.search(rf"\b{name}\b", template):
            warn(f"chat_template_kwargs: the chat template does not use {name}")
        if name != DATE:
            lines.append(f"{{%- set {name} = {name} if {name} is defined else {literal(value)} %}}")
    tokenizer.chat_template = "\n".join([*lines, template])  # the newline after a block is not part of the text
    return variables or None


def keep_date(variables: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The variables with the date of an earlier run, where that has recorded one and none is given; dates as text."""
    kept = {DATE: recorded[DATE]} if recorded and DATE in recorded else {}
    kept |= variables or {}
    return {name: str(value) if isinstance(value, date) else value for name, value in kept.items()} or None


def describe(variables: Mapping[str, Any] | None) -> str:
    """The variables, for the log."""
    return "".join(f", {name} = {json.dumps(value, default=str)}" for name, value in (variables or {}).items())


def read_date(value: Any) -> str:
    """A date as YYYY-MM-DD.

    Raises:
        UserError: it is none.
    """
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError as error:
        raise UserError(f"chat_template_kwargs: {DATE}: {value!r} is not a date, such as 2026-11-24") from error


def literal(value: Any) -> str:
    """A JSON value as Jinja spells it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(str(key))}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if value is None:
        return "none"
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise UserError(f"chat_template_kwargs: {value!r} is no JSON value") from error
