"""A row's conversations to text."""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from simpo.chat.answers import Split, render_whole, split_responses
from simpo.chat.rows import clean_messages, read_tools, split_pair
from simpo.chat.template import Messages, render, takes_system_message, uses, with_system_message


def apply_chat_template(
    example: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    task: Literal["sft", "generation", "simpo", "dpo"],
    auto_insert_empty_system_msg: bool = True,
    header_in_prompt: bool = False,
) -> dict[str, Any]:
    """Add the text of a row's conversations, rendered with the tokenizer's template.

    Args:
        example: a row with `messages` (sft, generation), or with `chosen` and `rejected` (simpo, dpo: the same; see
            `split_pair`). `system` and `tools` are used where the template takes them.
        header_in_prompt: move the assistant header from the responses to the prompt.

    Returns:
        The row with `text` (sft, generation), or `text_prompt`, `text_chosen` and `text_rejected` (simpo, dpo).

    Raises:
        ValueError: unknown task, or the columns that the task needs are missing.
        UserError: the row is malformed, or the template refuses it or leaves a message out.
    """
    needed = {"sft": ("messages",), "generation": ("messages",)}.get(task, ("chosen", "rejected"))
    if task not in ("sft", "generation", "simpo", "dpo") or not all(column in example for column in needed):
        raise ValueError(f"task {task!r} needs the columns {needed}, found {list(example)}")
    if task in ("sft", "generation"):
        messages = clean_messages(example["messages"], "messages")
        messages, tools = with_context(messages, example, tokenizer, auto_insert_empty_system_msg)
        if task == "sft" and messages[-1]["role"] == "assistant":
            texts = {"text": render_whole(tokenizer, messages, tools=tools)}
        else:
            texts = {"text": render(tokenizer, messages, task == "generation", tools)}
    else:
        split = format_pair(example, tokenizer, auto_insert_empty_system_msg, header_in_prompt)
        chosen, rejected = split.responses
        texts = {"text_prompt": split.prompt, "text_chosen": chosen, "text_rejected": rejected}
    example = example.copy()  # of its own type: `Dataset.map` removes columns from the row type that it passes
    example |= texts
    return example


def format_pair(
    example: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    auto_insert_empty_system_msg: bool = True,
    header_in_prompt: bool = False,
) -> Split:
    """Prompt, chosen and rejected response of a preference row, as text.

    Raises:
        UserError: see `apply_chat_template`.
    """
    prompt, chosen, rejected = split_pair(example)
    prompt, tools = with_context(prompt, example, tokenizer, auto_insert_empty_system_msg)
    return split_responses(tokenizer, prompt, [*chosen, *rejected], tools, header_in_prompt)


def with_context(
    messages: Messages,
    example: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    auto_insert_empty_system_msg: bool,
) -> tuple[Messages, list[Any] | None]:
    """A conversation with the row's system message, or an empty one; and its tools: what the template takes."""
    template = tokenizer.chat_template or ""
    system = example.get("system")
    if system and messages[0]["role"] != "system" and takes_system_message(tokenizer, template):
        messages = [{"role": "system", "content": system}, *messages]
    if auto_insert_empty_system_msg:
        messages = with_system_message(messages, tokenizer)
    return messages, read_tools(example.get("tools")) if uses(template, "tools") else None


def unused_context(columns: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Which of the columns `system` and `tools` the tokenizer's template has no use for."""
    template = tokenizer.chat_template or ""
    taken = {"system": takes_system_message(tokenizer, template), "tools": uses(template, "tools")}
    return [column for column in columns if not taken.get(column, True)]
