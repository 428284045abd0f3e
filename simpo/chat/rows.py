"""What a row of a dataset says, however its columns spell it."""

import json
from collections.abc import Mapping
from typing import Any

from simpo.chat.template import Messages
from simpo.console import UserError


def clean_messages(value: Any, column: str) -> Messages:
    """A column's messages, without the nulls that arrow fills in where other rows have more keys. Parts of text become
    one text.

    Raises:
        UserError: it is no non-empty list of messages whose contents are text (null only beside tool calls).
    """
    if isinstance(value, str):
        raise UserError(f"{column} is text, expected a list of messages")
    if not value:
        raise UserError(f"{column} is empty")
    if not isinstance(value, list):
        raise UserError(f"{column} is no list of messages")
    messages = []
    for number, message in enumerate(value):
        where = f"{column}, message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f'{where} is not {{"role": ..., "content": ...}}')
        role = message["role"]
        try:
            content = join_parts(message["content"])
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if not isinstance(role, str):
            raise UserError(f"{where}: its role is no text")
        if not are_calls(message.get("tool_calls")):
            raise UserError(f"{where}: its tool_calls are no list of calls")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise UserError(f"{where}: its content is {'null' if content is None else 'no text'}")
        messages.append({"role": role, "content": content, **without_nulls({**message, "content": content})})
    return messages


def join_parts(content: Any) -> Any:
    """The text of a content given as a list of {"type": "text", "text": ...}; any other content as it is.

    Raises:
        ValueError: a part is no text, such as an image; says so.
    """
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"its content has a part that is no text ({kind})")
    return "".join(part["text"] for part in content)


def are_calls(value: Any) -> bool:
    """Whether a message's `tool_calls` are calls, or none."""
    return isinstance(value, list | None) and all(
        isinstance(call, Mapping) and isinstance(call.get("function"), Mapping | None) for call in value or []
    )


def without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def split_pair(example: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Return the (prompt, chosen, rejected) messages of a preference row; chosen and rejected are one answer each.

    chosen and rejected are conversations, or answers alone: as messages, or as text. `prompt` is what comes before: a
    list of messages (conversations may repeat it), or the text of the user's message, which counts where the
    conversations have none of the user's.

    Raises:
        UserError: they are no two answers of the assistant to one conversation.
    """
    prompt = example.get("prompt")
    before = clean_messages(prompt, "prompt") if prompt and not isinstance(prompt, str) else []
    sides = []
    for column in ("chosen", "rejected"):
        value = example[column]
        if isinstance(value, str):
            if not prompt:
                raise UserError(f"{column} is text, and there is no prompt")
            value = [{"role": "assistant", "content": value}]
        messages = clean_messages(value, column)
        if not (len(messages) > len(before) and said(messages[: len(before)]) == said(before)):
            messages = [*before, *messages]
        if isinstance(prompt, str) and all(message["role"] != "user" for message in messages[:-1]):
            messages = [*messages[:-1], {"role": "user", "content": prompt}, messages[-1]]
        if messages[-1]["role"] != "assistant":
            role = messages[-1]["role"]
            raise UserError(f"{column} must end with an assistant message, it ends with one of role {role!r}")
        sides.append(messages)
    chosen, rejected = sides
    if said(chosen[:-1]) != said(rejected[:-1]):
        raise UserError("chosen and rejected are not answers to the same conversation")
    if not any((message["content"] or "").strip() for message in chosen[:-1]):
        raise UserError("the prompt is empty")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def said(messages: Messages) -> list[tuple[str, str | None]]:
    return [(message["role"], message["content"]) for message in messages]


def read_tools(value: Any) -> list[Any] | None:
    """The column `tools`: a list of JSON schemas, or the JSON text of one.

    Raises:
        UserError: it is neither.
    """
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value
    except ValueError as error:
        raise UserError(f"tools is no JSON: {error}") from error
    if tools and not isinstance(tools, list):
        raise UserError("tools is no list")
    return without_nulls(tools) or None
