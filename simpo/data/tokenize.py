"""Preference text to token ids: boundaries, BOS and EOS, truncation, and the batch the trainer sees.

All rules are the original's (they decide which tokens the published models were trained on); what it got wrong is
refused or dropped, and counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from simpo.console import UserError

RESPONSES = ("chosen", "rejected")


@dataclass(frozen=True)
class PairTokenizer:
    """Turns batches of {prompt, chosen, rejected} text into token ids.

    The prompt and each response are tokenized together, without special tokens, and cut where the prompt's own ids
    end (one token earlier when a merge crosses the boundary). BOS is put in front and EOS behind unless they are there.

    Args:
        max_length: longest prompt + response, in tokens.
        max_prompt_length: what a prompt is cut to when a pair is too long.
        truncation_mode: which end of a long prompt to keep.

    Raises:
        UserError: `max_prompt_length` leaves no room for a response, or the tokenizer has no EOS.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_prompt_length: int
    truncation_mode: Literal["keep_end", "keep_start"] = "keep_end"
    label_pad_token_id: int = -100

    def __post_init__(self):
        if not 0 < self.max_prompt_length < self.max_length:
            raise UserError(
                f"max_prompt_length ({self.max_prompt_length}) must be positive and below max_length "
                f"({self.max_length}), or no token of the response is left to train on."
            )
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token: set one (tokenizer_name_or_path) so that answers can end.")

    def __call__(self, batch: Mapping[str, list[str]]) -> dict[str, list[Any]]:
        """Tokenize B rows of text columns prompt, chosen and rejected.

        Returns:
            Columns of B entries: prompt_input_ids; {chosen,rejected}_input_ids and _labels (prompt + response, labels
            masked over the prompt); and the flags prompt_cut, response_cut, identical and empty (see `count_rows`).
        """
        prompts, size = batch["prompt"], len(batch["prompt"])
        joint = [p + r for name in RESPONSES for p, r in zip(prompts, batch[name], strict=True)]
        ids = self._ids([*prompts, *joint])
        columns: dict[str, list[Any]] = {}
        for row, (prompt, chosen, rejected) in enumerate(
            zip(ids[:size], ids[size : 2 * size], ids[2 * size :], strict=True)
        ):
            try:
                tokens = self.pair(prompt, chosen, rejected)
            except ValueError as error:
                raise ValueError(f"{error}; the prompt begins {prompts[row][:60]!r}") from error
            tokens["identical"] = batch["chosen"][row] == batch["rejected"][row]
            for name, value in tokens.items():
                columns.setdefault(name, []).append(value)
        return columns

    def pair(self, prompt: list[int], *joint: list[int]) -> dict[str, Any]:
        """Cut one pair's ids into prompt and responses; truncate; label.

        Args:
            prompt: ids of the prompt alone.
            joint: ids of prompt + chosen and of prompt + rejected.
        """
        # A merge over the boundary changes the prompt's last id: then that token counts as response.
        starts = [len(prompt) - (ids[: len(prompt)] != prompt) for ids in joint]
        prompts = [ids[:start] for ids, start in zip(joint, starts, strict=True)]
        responses = [ids[start:] for ids, start in zip(joint, starts, strict=True)]
        if prompts[0] != prompts[1] and sum(a != b for a, b in zip(*prompts, strict=False)) > 1:
            raise ValueError("the prompt's tokens differ between chosen and rejected in more than the last one")

        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None:
            prompts = [ids if ids[:1] == [bos] else [bos, *ids] for ids in prompts]
        responses = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in responses]
        shared_prompt = prompts[0][: min(map(len, prompts))]

        longest = max(map(len, responses))
        cut = [len(ids) + longest > self.max_length for ids in prompts]
        prompts = [self.cut_prompt(ids) if too_long else ids for ids, too_long in zip(prompts, cut, strict=True)]
        prompt_cut = any(cut) and len(shared_prompt) > self.max_prompt_length
        if len(shared_prompt) + longest > self.max_length:
            shared_prompt = self.cut_prompt(shared_prompt)
        room = self.max_length - self.max_prompt_length
        kept = [
            ids[:room] if len(p) + longest > self.max_length else ids for p, ids in zip(prompts, responses, strict=True)
        ]
        row: dict[str, Any] = {"prompt_input_ids": shared_prompt}
        for name, p, response in zip(RESPONSES, prompts, kept, strict=True):
            row[f"{name}_input_ids"] = p + response
            row[f"{name}_labels"] = [self.label_pad_token_id] * len(p) + response
        row["prompt_cut"] = prompt_cut
        row["response_cut"] = kept != responses
        # The first token of a row is predicted by nothing, so a lone response token without prompt is none to train on.
        row["empty"] = any(len(response) <= (not p) for p, response in zip(prompts, kept, strict=True))
        return row

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Ids without special tokens. A Rust tokenizer is asked itself, which spares the masks and offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        rust = self.tokenizer.backend_tokenizer
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = self.tokenizer.split_special_tokens
        return [encoding.ids for encoding in rust.encode_batch_fast(texts, add_special_tokens=False)]

    def cut_prompt(self, ids: list[int]) -> list[int]:
        return ids[-self.max_prompt_length :] if self.truncation_mode == "keep_end" else ids[: self.max_prompt_length]


@dataclass(frozen=True)
class PreferenceCollator:
    """Stacks B pairs into tensors of shape (B, 2, T): chosen and rejected of each pair, padded on the right.

    Precomputed reference log-probabilities (column ref_logps) come along as (B, 2).

    >>> PreferenceCollator(pad_token_id=0)([
    ...     {"chosen_input_ids": [1, 5, 6], "chosen_labels": [-100, 5, 6],
    ...      "rejected_input_ids": [1, 7], "rejected_labels": [-100, 7]}])
    {'input_ids': tensor([[[1, 5, 6],
             [1, 7, 0]]]), 'attention_mask': tensor([[[1, 1, 1],
             [1, 1, 0]]]), 'labels': tensor([[[-100,    5,    6],
             [-100,    7, -100]]])}
    """

    pad_token_id: int
    label_pad_token_id: int = -100

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        shape = (len(rows), 2, max(len(row[f"{name}_input_ids"]) for row in rows for name in RESPONSES))
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, self.label_pad_token_id),
        }
        for pair, row in enumerate(rows):
            for which, name in enumerate(RESPONSES):
                ids = torch.tensor(row[f"{name}_input_ids"])
                batch["input_ids"][pair, which, : len(ids)] = ids
                batch["attention_mask"][pair, which, : len(ids)] = 1
                batch["labels"][pair, which, : len(ids)] = torch.tensor(row[f"{name}_labels"])
        if "ref_logps" in rows[0]:
            batch["ref_logps"] = torch.tensor([row["ref_logps"] for row in rows], dtype=torch.float32)
        return batch


@dataclass(frozen=True)
class OwnCollator:
    """A user's collator, whose batch becomes the trainer's.

    It is given rows of {prompt,chosen,rejected}_input_ids and _attention_mask and {chosen,rejected}_labels, as the
    original's were. It returns what `PreferenceCollator` does; or the original's layout, the two sides apart and padded
    on any side: {chosen,rejected}_input_ids, _attention_mask and _labels, each (B, T).

    Args:
        collate: the user's.
        stack: puts the two sides together.
    """

    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    stack: PreferenceCollator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate B rows.

        Raises:
            UserError: the batch has another layout.
        """
        masks = [
            {f"{name}_attention_mask": [1] * len(row[f"{name}_input_ids"]) for name in ("prompt", *RESPONSES)}
            for row in rows
        ]
        batch = self.collate([row | mask for row, mask in zip(rows, masks, strict=True)])
        if {"input_ids", "attention_mask", "labels"} <= batch.keys() and batch["input_ids"].dim() == 3:
            return dict(batch)
        parts = [f"{name}_{what}" for name in RESPONSES for what in ("input_ids", "attention_mask", "labels")]
        if missing := [part for part in parts if part not in batch]:
            raise UserError(f"data_collator: its batch lacks {missing[0]} (found: {', '.join(batch)})")
        pairs = [
            {
                f"{name}_{what}": batch[f"{name}_{what}"][pair][batch[f"{name}_attention_mask"][pair].bool()].tolist()
                for name in RESPONSES
                for what in ("input_ids", "labels")
            }
            for pair in range(len(batch["chosen_input_ids"]))
        ]
        if "ref_logps" in rows[0]:
            pairs = [pair | {"ref_logps": row["ref_logps"]} for pair, row in zip(pairs, rows, strict=True)]
        return self.stack(pairs)
