"""Conversations for supervised fine-tuning: rows to token ids, with counts of what was left out and cut."""

from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from simpo.chat.format import apply_chat_template, format_pair
from simpo.config import DataArguments
from simpo.console import UserError, say
from simpo.data.load import name_problems
from simpo.data.mapping import map_rows, tokenizer_key

FEATURES = Features(
    {"input_ids": List(Value("int32")), "completion_mask": List(Value("int8"))}
    | {"length": Value("int32"), "start": Value("int32"), "problem": Value("string")}
)


def tokenize_conversations(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    name: str,
    max_length: int | None,
    completion_only: bool,
) -> Dataset:
    """Render and tokenize conversations; templates that write BOS get it once.

    Args:
        dataset: rows of `load_rows` with messages.
        max_length: what rows are cut to afterwards, in tokens; None where they are not (packing).
        completion_only: mark the last answer, which is split off as preference pairs are, without its header.

    Returns:
        input_ids, and with completion_only also completion_mask (1 for the answer's tokens). Rows that cannot be
        rendered, or keep no token of the answer, are left out and counted.

    Raises:
        UserError: no row can be used.
    """
    options = {"auto_insert_empty_system_msg": data_args.auto_insert_empty_system_msg}

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        tokens: dict[str, Any] = {
            "input_ids": [],
            "completion_mask": [],
            "length": 0,
            "start": 0,
            "problem": row["problem"],
        }
        if row["problem"] is not None:
            return tokens
        try:
            prompt, answer = split_answer(row, tokenizer, completion_only, options)
        except UserError as error:
            return tokens | {"problem": f"{row['source']}: {error}"}
        asked, ids = tokenizer([prompt, prompt + answer], add_special_tokens=False, verbose=False)["input_ids"]
        start = len(asked) - (ids[: len(asked)] != asked)  # as in `PairTokenizer`: a merge over the boundary
        mask = [int(position >= start) for position in range(len(ids))]
        return {"input_ids": ids, "completion_mask": mask, "length": len(ids), "start": start, "problem": None}

    tokens = map_rows(
        dataset,
        tokenize,
        ("tokenize_conversations", tokenizer_key(tokenizer), options, completion_only),
        data_args.preprocessing_num_workers,
        features=FEATURES,
        remove_columns=dataset.column_names,
        desc=f"Tokenizing {name}",
    )
    name_problems(f"{name} data", tokens["problem"])
    columns = (tokens["problem"], tokens["start"], tokens["length"])
    kept = [
        (row, length)
        for row, (problem, start, length) in enumerate(zip(*columns, strict=True))
        if problem is None and start < min(length, max_length or length)
    ]
    empty = sum(problem is None for problem in columns[0]) - len(kept)
    if not kept:
        raise UserError(f"{name} data: no conversation of {empty} has a token of its answer within max_length")
    cut = sum(max_length is not None and length > max_length for _, length in kept)
    say(f"{name} data: {len(kept)} conversations (cut {cut}, dropped without an answer {empty})")
    used = ["input_ids", "completion_mask"] if completion_only else ["input_ids"]
    return tokens.select([row for row, _ in kept]).select_columns(used)


def split_answer(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, completion_only: bool, options: dict[str, bool]
) -> tuple[str, str]:
    """The text before what is trained on, and that text: the last answer, or the whole conversation.

    Raises:
        UserError: the template refuses the conversation, or it does not end with an answer.
    """
    context = {column: row[column] for column in ("system", "tools") if column in row}
    if not completion_only:
        text = apply_chat_template({"messages": row["messages"], **context}, tokenizer, "sft", **options)["text"]
        return "", text
    pair = {"chosen": row["messages"], "rejected": row["messages"], **context}
    split = format_pair(pair, tokenizer, header_in_prompt=True, **options)
    return split.prompt, split.responses[0]
