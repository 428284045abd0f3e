"""Prompts as the scripts here hold them: a text (one user message), or a conversation that ends with the user.

In files a conversation is a list of {"role": ..., "content": ...}; in memory, a tuple of (role, content), which can be
a key. A conversation of one user message is its text, so both spellings of it are one prompt.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from simpo.chat.rows import join_parts

Prompt = str | tuple[tuple[str, str], ...]
Messages = list[dict[str, str]]


def read_prompt(value: Any) -> Prompt:
    """A prompt from a file. Of a conversation that ends with answers these are left out; parts of text become one text.

    Raises:
        ValueError: it is none; says why.
    """
    if isinstance(value, str):
        check_text(value)
        return value
    if not isinstance(value, list | tuple) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise ValueError(f"must be text or a list of messages, found {found}")
    turns = []
    for turn in value:
        said = (turn.get("role"), join_parts(turn.get("content"))) if isinstance(turn, Mapping) else ()
        if not said or not all(isinstance(text, str) for text in said):
            raise ValueError("holds something that is no message with role and content (texts)")
        turns.append(said)
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    if not turns or turns[-1][0] != "user":
        raise ValueError("holds no message of the user to answer")
    for role, content in turns:
        check_unicode(role + content)
    check_text(turns[-1][1])
    return turns[0][1] if len(turns) == 1 else tuple(turns)


def check_text(text: str) -> None:
    """Raise ValueError, saying why, for a text that nobody can answer."""
    if not text.strip():
        raise ValueError("is empty")
    check_unicode(text)


def check_unicode(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("is not valid Unicode text (half of a surrogate pair)")


def to_messages(prompt: Prompt) -> Messages:
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    return [{"role": role, "content": content} for role, content in turns]


def to_json(prompt: Prompt) -> str | Messages:
    """The prompt as files have it."""
    return prompt if isinstance(prompt, str) else to_messages(prompt)


def prompt_text(prompt: Prompt) -> str:
    """A text that names the prompt: for sorting, seeding and messages."""
    return prompt if isinstance(prompt, str) else json.dumps(to_messages(prompt), ensure_ascii=False)


def prompt_digest(prompt: Prompt) -> int:
    """A number that depends on the prompt alone: for splits that other prompts, and their order, do not change."""
    return int.from_bytes(hashlib.sha256(prompt_text(prompt).encode()).digest())
