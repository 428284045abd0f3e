"""Prompts with other prompts' responses: what the policy's distance from the reference is estimated on (KTO)."""

from typing import Any

import torch

from simpo.data.tokenize import RESPONSES, PairTokenizer

Row = dict[str, Any]


def rows_of(batch: dict[str, torch.Tensor]) -> list[Row]:
    """The rows that the collator stacked: ids and labels of both responses, without padding."""
    rows: list[Row] = [{} for _ in batch["input_ids"]]
    for pair, row in enumerate(rows):
        for which, name in enumerate(RESPONSES):
            real = batch["attention_mask"][pair, which].bool()
            for what in ("input_ids", "labels"):
                row[f"{name}_{what}"] = batch[what][pair, which][real].tolist()
    return rows


def neighbours(count: int) -> list[int]:
    """Whose responses each of `count` >= 2 rows gets: two after two swap, an odd number's last three go in a ring.

    So it makes no difference how many processes an even batch is divided among, as long as each gets an even part.
    """
    others = [row ^ 1 for row in range(count)]
    if count % 2:
        others[-3:] = [count - 2, count - 1, count - 3]
    return others


def mismatched_rows(rows: list[Row], tokenizer: PairTokenizer) -> list[Row]:
    """Each row's prompt, continued with another row's two responses and cut to max_length by the usual rules."""
    pad, longest = tokenizer.label_pad_token_id, tokenizer.max_length
    mixed: list[Row] = []
    for row, other in zip(rows, neighbours(len(rows)), strict=True):
        found: Row = {}
        for name in RESPONSES:
            (prompt, _), (_, response) = split(row, name, pad), split(rows[other], name, pad)
            if len(prompt) + len(response) > longest:
                prompt = tokenizer.cut_prompt(prompt)
            if len(prompt) + len(response) > longest:
                response = response[: longest - tokenizer.max_prompt_length]
            found[f"{name}_input_ids"], found[f"{name}_labels"] = prompt + response, [pad] * len(prompt) + response
        mixed.append(found)
    return mixed


def split(row: Row, name: str, label_pad_token_id: int) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the response."""
    ids, labels = row[f"{name}_input_ids"], row[f"{name}_labels"]
    start = next(place for place, label in enumerate(labels) if label != label_pad_token_id)
    return ids[:start], ids[start:]
