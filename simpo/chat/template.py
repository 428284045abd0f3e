"""The one place that chooses a chat template, and the one that applies it."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from simpo.console import UserError

TEMPLATES = {path.stem: path for path in (Path(__file__).parent / "templates").glob("*.jinja")}
Messages = list[dict[str, Any]]  # {"role": ..., "content": ...}, and whatever else the template uses


class ChatTemplate(NamedTuple):
    """A Jinja chat template and where it comes from, for the log."""

    jinja: str
    origin: str


def resolve_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    model_name_or_path: str | None = None,
    mistral_override: bool = False,
) -> ChatTemplate:
    """Choose the template: the configured one, SimPO's own for Mistral, the tokenizer's, else Zephyr's.

    Args:
        chat_template: the `chat_template` setting: Jinja text, a file, or the name of a built-in template.
        mistral_override: SimPO's rule that a model path holding "mistral" (any case) gets the built-in Mistral
            template instead of the tokenizer's. WPO and data generation do not have it.

    Raises:
        UserError: `chat_template` is neither Jinja text, nor a file, nor a built-in name; or it is not given, and the
            tokenizer has several and no default.
    """
    if chat_template is not None:
        if chat_template in TEMPLATES:
            return ChatTemplate(TEMPLATES[chat_template].read_text(), f"built-in {chat_template} (chat_template)")
        if "{" in chat_template:
            return ChatTemplate(chat_template, "chat_template setting")
        try:
            return ChatTemplate(Path(chat_template).read_text(encoding="utf-8"), f"file {chat_template}")
        except (OSError, ValueError) as error:  # no file, no file's name, not UTF-8
            raise UserError(
                f"chat_template: {chat_template[:80]!r} is not a Jinja template, a text file, "
                f"or one of {', '.join(sorted(TEMPLATES))}"
            ) from error
    if mistral_override and "mistral" in (model_name_or_path or "").lower():
        return ChatTemplate(TEMPLATES["mistral"].read_text(), "built-in mistral (the model's path says Mistral)")
    if tokenizer.chat_template is not None:
        try:
            return ChatTemplate(tokenizer.get_chat_template(), "the tokenizer's own")
        except ValueError as error:  # several by name, none of them the default
            raise UserError(f"chat_template: {error}") from error
    return ChatTemplate(TEMPLATES["zephyr"].read_text(), "built-in zephyr (the tokenizer has none)")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    add_generation_prompt: bool = False,
    tools: list[Any] | None = None,
) -> str:
    """Render a conversation with the tokenizer's template.

    Raises:
        UserError: the template refuses it, or is no valid Jinja.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateSyntaxError as error:
        raise UserError(f"chat_template: line {error.lineno}: {error.message}") from error
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:  # whatever its code runs into
        raise UserError(f"the chat template refuses the conversation: {error}") from error


def check_syntax(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a UserError where the tokenizer's template is no valid Jinja."""
    try:
        render(tokenizer, [{"role": "user", "content": "Hi"}])
    except UserError as error:
        if isinstance(error.__cause__, TemplateSyntaxError):
            raise


def with_system_message(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> Messages:
    """Put an empty system message first when there is none and the tokenizer's template has a place for one."""
    template = tokenizer.chat_template or ""
    if messages[0]["role"] == "system" or not ("system" in template or "<|im_start|>" in template):
        return messages
    if not takes_system_message(tokenizer, template, "") or writes_own_system_text(tokenizer, template):
        return messages
    return [{"role": "system", "content": ""}, *messages]


@lru_cache(maxsize=8)
def takes_system_message(tokenizer: PreTrainedTokenizerBase, template: str, content: str = "Be brief.") -> bool:
    """Whether the template (the tokenizer's) renders a system message, and its content."""
    messages = [{"role": "system", "content": content}, {"role": "user", "content": "Hi"}]
    try:
        return content in render(tokenizer, messages)
    except UserError:
        return False


@lru_cache(maxsize=8)
def writes_own_system_text(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether the template (the tokenizer's) writes more than special tokens before the first message."""
    contents = ("First question?", "First answer.", "Second question?")
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    try:
        text = render(tokenizer, messages)
    except UserError:
        return False
    for token in sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True):
        text = text.replace(token, "\0")
    lead, between = text.partition(contents[0])[0], text.partition(contents[1])[2].partition(contents[2])[0]
    own = next(lead[:end] for end in range(len(lead) + 1) if between.endswith(lead[end:]))  # less the user's header
    return bool(own.strip("\0 \n"))


def uses(template: str, name: str) -> bool:
    """Whether a template mentions a variable, or a key of the messages."""
    return re.search(rf"\b{name}\b", template) is not None
