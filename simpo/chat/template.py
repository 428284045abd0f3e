"""Conversations to text: the one place that chooses a chat template, and the one that applies it.

Messages are lists of {"role": ..., "content": ...}. For preference data the prompt is everything before the last
message, and each response is rendered alone, so with Llama-3's template the assistant header belongs to the response
(the published models were trained so; `header_in_prompt` moves it).
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from simpo.console import UserError

TEMPLATES = {path.stem: path for path in (Path(__file__).parent / "templates").glob("*.jinja")}
Messages = list[dict[str, str]]


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
        UserError: `chat_template` is neither Jinja text, nor a file, nor a built-in name.
    """
    if chat_template is not None:
        if chat_template in TEMPLATES:
            return ChatTemplate(TEMPLATES[chat_template].read_text(), f"built-in {chat_template} (chat_template)")
        if "{" in chat_template:
            return ChatTemplate(chat_template, "chat_template setting")
        if Path(chat_template).is_file():
            return ChatTemplate(Path(chat_template).read_text(), f"file {chat_template}")
        raise UserError(
            f"chat_template: {chat_template!r} is not a Jinja template, a file, "
            f"or one of {', '.join(sorted(TEMPLATES))}"
        )
    if mistral_override and "mistral" in (model_name_or_path or "").lower():
        return ChatTemplate(TEMPLATES["mistral"].read_text(), "built-in mistral (the model's path says Mistral)")
    if tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer.get_chat_template(), "the tokenizer's own")
    return ChatTemplate(TEMPLATES["zephyr"].read_text(), "built-in zephyr (the tokenizer has none)")


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def with_system_message(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> Messages:
    """Put an empty system message first when there is none and the tokenizer's template has a place for one."""
    template = tokenizer.chat_template or ""
    if messages[0]["role"] == "system" or not ("system" in template or "<|im_start|>" in template):
        return messages
    return [{"role": "system", "content": ""}, *messages]


def without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text


def split_pair(example: dict[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Return the (prompt, chosen, rejected) messages of a preference row.

    A `prompt` of messages is used as it is; a chosen or rejected conversation that repeats it loses the repetition.
    Otherwise the prompt is all but the last message of `chosen`.
    """
    prompt, chosen, rejected = example.get("prompt"), example["chosen"], example["rejected"]
    if not isinstance(prompt, list):
        return chosen[:-1], chosen[-1:], rejected[-1:]

    def answer(messages: Messages) -> Messages:
        repeats = len(messages) > len(prompt) and messages[: len(prompt)] == prompt
        return messages[len(prompt) :] if repeats else messages

    return prompt, answer(chosen), answer(rejected)


def apply_chat_template(
    example: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    task: Literal["sft", "generation", "simpo", "dpo"],
    auto_insert_empty_system_msg: bool = True,
    header_in_prompt: bool = False,
) -> dict[str, Any]:
    """Add the text of a row's conversations, rendered with the tokenizer's template.

    Args:
        example: a row with `messages` (sft, generation), or with `chosen` and `rejected` (simpo, dpo: the same).
        header_in_prompt: move the assistant header from the responses to the prompt.

    Returns:
        The row with `text` (sft, generation), or `text_prompt`, `text_chosen` and `text_rejected` (simpo, dpo).

    Raises:
        ValueError: unknown task, or the columns that the task needs are missing.
    """
    needed = {"sft": ("messages",), "generation": ("messages",)}.get(task, ("chosen", "rejected"))
    if task not in ("sft", "generation", "simpo", "dpo") or not all(column in example for column in needed):
        raise ValueError(f"task {task!r} needs the columns {needed}, found {list(example)}")
    example = example.copy()  # of its own type: `Dataset.map` removes columns from the row type that it passes
    if task in ("sft", "generation"):
        messages = example["messages"]
        if auto_insert_empty_system_msg:
            messages = with_system_message(messages, tokenizer)
        example["text"] = render(tokenizer, messages, add_generation_prompt=task == "generation")
        return example

    prompt, chosen, rejected = split_pair(example)
    if auto_insert_empty_system_msg:
        prompt = with_system_message(prompt, tokenizer)
    text_prompt = render(tokenizer, prompt)
    text_chosen, text_rejected = (without_bos(render(tokenizer, r), tokenizer) for r in (chosen, rejected))
    if header_in_prompt:
        header = render(tokenizer, prompt, add_generation_prompt=True).removeprefix(text_prompt)
        if text_chosen.startswith(header) and text_rejected.startswith(header):
            text_prompt += header
            text_chosen, text_rejected = text_chosen.removeprefix(header), text_rejected.removeprefix(header)
    example |= {"text_prompt": text_prompt, "text_chosen": text_chosen, "text_rejected": text_rejected}
    return example
