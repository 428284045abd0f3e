"""Preference datasets, step by step: messages -> text -> token ids, with counts of what was cut and dropped."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerBase

from simpo.chat.format import format_pair, unused_context
from simpo.chat.template import render
from simpo.config import DataArguments
from simpo.console import UserError, warn
from simpo.data.load import name_problems
from simpo.data.mapping import map_rows, tokenizer_key
from simpo.data.tokenize import RESPONSES, PairTokenizer

TEXT_COLUMNS = ("prompt", *RESPONSES)
TEXT_FEATURES = Features(
    dict.fromkeys((*TEXT_COLUMNS, "problem"), Value("string"))
    | dict.fromkeys(("continues", "has_header"), Value("bool"))  # see `Split`
)
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
    dropped_malformed: int
    """No two answers to one conversation, or refused by the chat template."""

    def __str__(self) -> str:
        counts = {f.name.replace("_", " "): getattr(self, f.name) for f in fields(self)[1:]}
        return f"{self.rows} rows ({', '.join(f'{name} {count}' for name, count in counts.items())})"


def format_pairs(datasets: DatasetDict, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> DatasetDict:
    """Render rows to the text columns prompt, chosen and rejected.

    Of rows that cannot be used (see `load_rows`), or that the template refuses, only the reason is kept, in the column
    `problem`; they are named in a warning. The column is left out where there are none.

    Raises:
        UserError: no row of a split can be used.
    """
    settings = (data_args.auto_insert_empty_system_msg, data_args.header_in_prompt)

    def to_text(batch: Mapping[str, list[Any]], positions: list[int]) -> dict[str, list[Any]]:
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        texts = [format_row(row, position, tokenizer, settings) for row, position in zip(rows, positions, strict=True)]
        return {name: [text[name] for text in texts] for name in TEXT_FEATURES}

    formatted, unused = DatasetDict(), set()
    for split, dataset in datasets.items():
        unused |= {column for column in unused_context(dataset.column_names, tokenizer) if any(dataset[column])}
        texts = map_rows(
            dataset,
            to_text,
            ("format_pairs", tokenizer_key(tokenizer), settings),
            data_args.preprocessing_num_workers,
            batched=True,
            with_indices=True,
            features=TEXT_FEATURES,
            remove_columns=dataset.column_names,
            desc=f"Formatting {split}",
        )
        name_problems(f"{split} data", texts["problem"])
        say_what_disagrees(f"{split} data", texts, tokenizer, data_args)
        extra = ["continues", "has_header"] + ([] if any(texts["problem"]) else ["problem"])
        formatted[split] = texts.remove_columns(extra)
    if unused:
        warn(f"the chat template has no use for the data's column {' and '.join(sorted(unused))}: left out")
    return formatted


def format_row(
    row: dict[str, Any], position: int, tokenizer: PreTrainedTokenizerBase, settings: tuple[bool, bool]
) -> dict[str, Any]:
    """One row's TEXT_FEATURES."""
    text = dict.fromkeys(TEXT_FEATURES)
    text["problem"] = row.get("problem")
    if text["problem"] is None:
        try:
            split = format_pair(row, tokenizer, *settings)
        except UserError as error:
            text["problem"] = f"{row.get('source', f'row {position}')}: {error}"
        else:
            text |= {"prompt": split.prompt, **dict(zip(RESPONSES, split.responses, strict=True))}
            text |= {"continues": split.continues, "has_header": split.has_header}
    return text


def say_what_disagrees(name: str, texts: Dataset, tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> None:
    """Warn of answers that do not follow the prompt of decode and evaluation, and of headers that could not move."""
    if apart := sum(continues is False for continues in texts["continues"]):
        asked = render(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        warn(
            f"{name}: in {apart} of {len(texts)} rows the answer does not go on from the prompt that asks for one, "
            f"which decode and evaluation feed (it ends in {asked[-40:]!r}); chat_template_kwargs may change that"
        )
    unmoved = sum(has_header is False for has_header in texts["has_header"])
    if data_args.header_in_prompt and unmoved:
        warn(
            f"header_in_prompt: has no effect in {unmoved} of {len(texts)} rows of the {name}: the chat template "
            "writes no header there that both answers follow"
        )


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
    malformed = [bool(problem) for problem in dataset["problem"]] if "problem" in dataset.column_names else []
    if any(malformed):
        dataset = dataset.select([row for row, bad in enumerate(malformed) if not bad])
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
        dropped_malformed=sum(malformed),
    )
    if not kept:
        raise UserError(
            f"{name} data: no pair is left of {len(dataset)}: {report.dropped_identical} have chosen equal to "
            f"rejected, {report.dropped_empty} an empty response"
        )
    if len(kept) < len(tokens):
        tokens = tokens.select(kept)
    return tokens.remove_columns(list(flags)), report
