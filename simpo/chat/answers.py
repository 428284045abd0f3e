"""A conversation and the answer at its end: rendered whole, and cut where the prompt ends."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from simpo.chat.template import Messages, render, uses
from simpo.chat.thinking import TAGS, split_thinking
from simpo.console import UserError

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")  # of messages, where templates look for thoughts


class Split(NamedTuple):
    """A prompt and its responses as text: prompt + response is the rendered conversation."""

    prompt: str
    responses: list[str]
    continues: bool
    """Whether prompt + response begins with what the model is asked with when it generates."""
    has_header: bool
    """Whether the prompt ends with what the template writes to ask for an answer."""


def split_responses(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    answers: Messages,
    tools: list[Any] | None = None,
    header_in_prompt: bool = False,
) -> Split:
    """Render a prompt and several answers to it.

    The response is what an answer adds to the rendered prompt. With Llama-3's template it begins with the assistant's
    header (the published models were trained so; `header_in_prompt` moves it). Where the prompt alone is rendered as no
    conversation goes on (Phi-3 ends it with EOS), the prompt is rendered with the request for an answer.

    Raises:
        UserError: the template refuses the conversation, leaves something out, or renders the prompt in another way
            once it is answered.
    """
    plain, asked = (render(tokenizer, prompt, ask, tools) for ask in (False, True))
    wholes = [render_whole(tokenizer, [*prompt, answer], asked, tools) for answer in answers]
    for text in (asked, plain) if header_in_prompt else (plain, asked):
        if all(whole.startswith(text) for whole in wholes):
            responses = [whole.removeprefix(text) for whole in wholes]
            continues = all(whole.startswith(asked) for whole in wholes)
            return Split(text, responses, continues, has_header=text == asked != plain)
    raise UserError("the chat template renders the prompt in another way once an answer follows")


def render_whole(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, asked: str | None = None, tools: list[Any] | None = None
) -> str:
    """Render a conversation that ends with an answer, and see that every message arrives.

    Templates of models that think drop thoughts, which is right for earlier turns. The last answer keeps its thoughts:
    as the template renders them, passed where the template looks for them, or with their tags hidden from it.

    Args:
        asked: the prompt as it asks for an answer. Of several renderings, one that begins with it is preferred.

    Raises:
        UserError: the template refuses the conversation, or leaves out a message.
    """
    *history, answer = messages
    text = render(tokenizer, messages, tools=tools)
    for number, message in enumerate(history):
        if not holds(text, message):
            raise UserError(f"the chat template leaves out message {number} (of role {message['role']!r})")
    if (number := calls_left_out(tokenizer, messages, tools)) is not None:
        raise UserError(f"the chat template leaves out the tool calls of message {number}")
    thoughts, rest = split_thinking(answer["content"] or "")
    if thoughts is None:
        if not holds(text, answer):
            raise UserError("the chat template leaves out the answer")
        return text
    thoughts = thoughts.strip()
    opening, closing = next(tags for tags in TAGS if thoughts.startswith(tags[0]) or thoughts.endswith(tags[1]))
    inner = thoughts.removeprefix(opening).removesuffix(closing).strip()
    blocks = render(tokenizer, history, tools=tools).count(closing) + thoughts.count(closing) + rest.count(closing)
    incomplete = None
    for whole in renderings_of_thoughts(tokenizer, messages, (opening, closing), asked, tools):
        if inner in whole and rest.strip() in whole:
            if whole.startswith(asked or "") and whole.count(closing) == blocks:
                return whole
            incomplete = incomplete or whole
    if incomplete is None:
        raise UserError("the chat template leaves out the thoughts of the answer")
    return incomplete


def renderings_of_thoughts(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tags: tuple[str, str],
    asked: str | None,
    tools: list[Any] | None,
) -> Iterator[str]:
    """The ways to render a conversation whose answer begins with thoughts."""
    *history, answer = messages
    content = answer["content"].strip()
    thoughts, rest = split_thinking(content)
    opening, closing = tags
    yield render(tokenizer, messages, tools=tools)

    inner = thoughts.removeprefix(opening).removesuffix(closing).strip()
    for key in REASONING_KEYS:
        if uses(tokenizer.chat_template, key):
            yield render(tokenizer, [*history, {**answer, "content": rest, key: inner}], tools=tools)

    mark = uuid4().hex
    hidden = content.replace(opening, f"{mark}o").replace(closing, f"{mark}c")
    text = render(tokenizer, [*history, {**answer, "content": hidden}], tools=tools)
    head, found, tail = text.rpartition(hidden)
    if found:
        yield head + content + tail
    if found and asked is not None:  # as a model that is asked so would have answered
        begun = opening + asked[len(asked.rstrip()) :] if asked.rstrip().endswith(opening) else ""
        yield asked + content.removeprefix(begun).removeprefix(opening if begun else "") + tail


def holds(text: str, message: dict[str, Any]) -> bool:
    """Whether a rendered text holds a message's content, but for white space at its ends and thoughts before it."""
    content = message["content"]
    if content is None:  # beside tool calls: see `calls_left_out`
        return True
    if message["role"] == "assistant":
        content = split_thinking(content).answer
    content = content.strip()
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text  # some quote results of tools


def calls_left_out(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: list[Any] | None = None
) -> int | None:
    """The number of the first message whose tool calls the template does not write; None: it writes all there are.

    The functions are renamed for that: their own names may be words of the conversation.
    """
    marks = {number: uuid4().hex for number, message in enumerate(messages) if message.get("tool_calls")}
    if not marks:
        return None
    marked = list(messages)
    for number, mark in marks.items():
        calls = [rename(call, f"{mark}{position}") for position, call in enumerate(messages[number]["tool_calls"])]
        marked[number] = messages[number] | {"tool_calls": calls}
    text = render(tokenizer, marked, tools=tools)
    for number, mark in marks.items():
        if not all(f"{mark}{position}" in text for position in range(len(messages[number]["tool_calls"]))):
            return number
    return None


def rename(call: dict[str, Any], name: str) -> dict[str, Any]:
    return call | ({"function": call["function"] | {"name": name}} if "function" in call else {"name": name})
