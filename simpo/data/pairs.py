"""Preference datasets, step by step: messages -> text -> token ids, with counts of what was cut and dropped."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from simpo.chat.template import apply_chat_template
from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.tokenize import RESPONSES, PairTokenizer

TEXT_COLUMNS = ("prompt", *RESPONSES)
IDS = List(Value("int32"))
FLAGS = ("prompt_cut", "response_cut", "identical", "empty")
# Said beforehand, or `datasets` looks at every token to guess them.
TOKEN_FEATURES = Features(
    {"prompt_input_ids": IDS}
    | {f"{name}_{what}": IDS for name in RESPONSES for what in ("input_ids", "labels")}
    | {flag: Value("bool") for flag in FLAGS}
)


@dataclass(frozen=True)
class DataReport:
    """What tokenization did to one split, in rows."""

    rows: int
    """Rows to train on or evaluate."""
    prompt_cut: int
    response_cut: int
    dropped_identical: int
    """Chosen equal to rejected: nothing to prefer."""
    dropped_empty: int
    """A response without a token to predict."""

    def __str__(self) -> str:
        counts = {f.name.replace("_", " "): getattr(self, f.name) for f in fields(self)[1:]}
        return f"{self.rows} rows ({', '.join(f'{name} {count}' for name, count in counts.items())})"


def map_rows(
    dataset: Dataset,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    key: Any,
    num_proc: int | None,
    **kwargs: Any,
) -> Dataset:
    """`Dataset.map`, cached under a fingerprint of `key`: a tokenizer's own hash changes as it is used."""
    num_proc = min(num_proc or 1, max(1, len(dataset) // 1000))  # a batch of `map` for each, at least
    if num_proc > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per process, and no warning after each fork
    return dataset.map(
        function,
        num_proc=num_proc if num_proc > 1 else None,
        new_fingerprint=Hasher.hash((dataset._fingerprint, key)),
        **kwargs,
    )


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What determines a tokenizer's output here, for the cache."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return (type(tokenizer).__name__, backend, tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)


def format_pairs(
    datasets: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
) -> DatasetDict:
    """Render messages to the string columns prompt, chosen and rejected, which are all that is kept."""

    def to_text(batch: Mapping[str, list[Any]]) -> dict[str, list[str]]:
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        options = (data_args.auto_insert_empty_system_msg, data_args.header_in_prompt)
        formatted = [apply_chat_template(row, tokenizer, "simpo", *options) for row in rows]
        return {name: [row[f"text_{name}"] for row in formatted] for name in TEXT_COLUMNS}

    settings = (data_args.auto_insert_empty_system_msg, data_args.header_in_prompt)
    formatted = DatasetDict()
    for split, dataset in datasets.items():
        formatted[split] = map_rows(
            dataset,
            to_text,
            ("format_pairs", tokenizer_key(tokenizer), settings),
            data_args.preprocessing_num_workers,
            batched=True,
            remove_columns=dataset.column_names,
            desc=f"Formatting {split}",
        )
    return formatted


def tokenize_pairs(
    dataset: Dataset, tokenize: PairTokenizer, name: str, num_proc: int | None = None
) -> tuple[Dataset, DataReport]:
    """Tokenize text pairs and drop those that cannot be trained on.

    Raises:
        UserError: a text column is missing, or no row is left.
    """
    if missing := [column for column in TEXT_COLUMNS if column not in dataset.column_names]:
        raise UserError(f"{name} data: lacks the text column {missing[0]} (found: {', '.join(dataset.column_names)})")
    for column in TEXT_COLUMNS:
        if dataset.features[column] not in (Value("string"), Value("large_string")):
            raise UserError(
                f"{name} data: the column {column} holds messages, not text: render them first: "
                "apply_chat_template(row, tokenizer, task='simpo') gives text_prompt, text_chosen and text_rejected, "
                "to be renamed to prompt, chosen and rejected"
            )
    settings = (tokenize.max_length, tokenize.max_prompt_length, tokenize.truncation_mode, tokenize.label_pad_token_id)
    tokens = map_rows(
        dataset,
        tokenize,
        ("tokenize_pairs", tokenizer_key(tokenize.tokenizer), settings),
        num_proc,
        batched=True,
        features=TOKEN_FEATURES,
        remove_columns=dataset.column_names,
        desc=f"Tokenizing {name}",
    )
    flags = tokens.select_columns(list(FLAGS))[:]
    kept = [i for i, bad in enumerate(zip(flags["identical"], flags["empty"], strict=True)) if not any(bad)]
    report = DataReport(
        rows=len(kept),
        prompt_cut=sum(flags["prompt_cut"][i] for i in kept),
        response_cut=sum(flags["response_cut"][i] for i in kept),
        dropped_identical=sum(flags["identical"]),
        dropped_empty=sum(e and not i for e, i in zip(flags["empty"], flags["identical"], strict=True)),
    )
    if not kept:
        raise UserError(
            f"{name} data: no pair is left of {len(dataset)}: {report.dropped_identical} have chosen equal to "
            f"rejected, {report.dropped_empty} an empty response"
        )
    if len(kept) < len(tokens):
        tokens = tokens.select(kept)
    return tokens.remove_columns(list(flags)), report
