"""Preference pairs for reward models: each conversation to the inputs it is scored on, and pairs to batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from simpo.chat.ids import ContentGuard, chat_ids
from simpo.chat.template import Messages
from simpo.console import UserError, say
from simpo.data.load import name_problems
from simpo.data.mapping import map_rows, tokenizer_key

SIDES = ("chosen", "rejected")


def scored_inputs(guard: ContentGuard, messages: Messages) -> dict[str, list[int]]:
    """A conversation as a reward model reads it, here and in annotation.

    On the tokenizer's chat template; without one (encoders), the user's message and the answer are a pair of texts,
    with segment ids where the tokenizer makes them. Special tokens spelt out in the contents stay text.

    Raises:
        UserError: the template refuses it; or there is none, and more than one message comes before the answer.
    """
    if guard.tokenizer.chat_template is not None:
        return {"input_ids": chat_ids(guard, messages)[1]}
    *history, answer = messages
    if len(history) != 1:
        raise UserError("the tokenizer has no chat template, and the prompt is several messages")
    texts = (history[0]["content"], answer["content"])
    return dict(guard.tokenizer(*texts, split_special_tokens=True, return_attention_mask=False))


def tokenize_comparisons(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, name: str, max_length: int, num_proc: int | None
) -> Dataset:
    """Tokenize pairs; those that a reward model cannot learn from are left out and counted.

    Args:
        dataset: rows of `load_rows` with pairs.

    Returns:
        Columns chosen_ids and rejected_ids, and {chosen,rejected}_token_type_ids where the tokenizer makes them.

    Raises:
        UserError: no pair is left.
    """
    guard = ContentGuard(tokenizer)
    names = ["input_ids"] + ["token_type_ids"] * ("token_type_ids" in tokenizer.model_input_names)

    def tokenize(row: Mapping[str, Any]) -> dict[str, Any]:
        empty: dict[str, list[int]] = {name: [] for name in names}
        inputs, problem = dict.fromkeys(SIDES, empty), row["problem"]
        if problem is None:
            try:
                inputs = {side: scored_inputs(guard, row[side]) for side in SIDES}
            except UserError as error:
                problem = f"{row['source']}: {error}"
        columns = {column(side, name): inputs[side][name] for side in SIDES for name in names}
        chosen, rejected = (inputs[side]["input_ids"] for side in SIDES)
        return columns | {
            "problem": problem or "",
            "identical": chosen == rejected,
            "longest": max(len(chosen), len(rejected)),
        }

    tokens = map_rows(
        dataset,
        tokenize,
        ("tokenize_comparisons", tokenizer_key(tokenizer), names),
        num_proc,
        remove_columns=dataset.column_names,
        desc=f"Tokenizing {name}",
    )
    name_problems(f"{name} data", tokens["problem"])
    reasons = [
        "malformed" if problem else "identical" if identical else "too long" if longest > max_length else None
        for problem, identical, longest in zip(tokens["problem"], tokens["identical"], tokens["longest"], strict=True)
    ]
    told = ", ".join(f"dropped {reason} {reasons.count(reason)}" for reason in ("malformed", "identical", "too long"))
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise UserError(f"{name} data: no pair is left of {len(tokens)} ({told}; max_length: {max_length})")
    say(f"{name} data: {len(kept)} pairs ({told})")
    return tokens.select(kept).select_columns([column(side, name) for side in SIDES for name in names])


def column(side: str, name: str) -> str:
    """TRL's name for a side's token ids; the others are our own."""
    return f"{side}_ids" if name == "input_ids" else f"{side}_{name}"


@dataclass(frozen=True)
class ComparisonCollator:
    """Stacks B pairs into a batch of 2B rows, the chosen ones first, padded on the right."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = ["input_ids"] + ["token_type_ids"] * ("chosen_token_type_ids" in rows[0])
        inputs = [{name: row[column(side, name)] for name in names} for side in SIDES for row in rows]
        return dict(self.tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
