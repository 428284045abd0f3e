"""The prompts to answer: from the hub, a folder, a file, or a plain list."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from conversations import Prompt, prompt_digest, prompt_text, read_prompt
from simpo.console import UserError, first_few, say, warn
from tables import read_split

CONVERSATIONS = ("messages", "chosen")  # columns that hold the prompt as well, where there is no column `prompt`
LIKELY = ("instruction", "question", "query", "input", "text", "conversation", "conversations", "messages", "chosen")


def load_prompts(
    data_dir: str, split: str, column: str, limit: int | None = None, keep: Sequence[str] = ()
) -> dict[Prompt, dict[str, Any]]:
    """Return the distinct prompts, sorted (the first `limit` of them), as the original does, each with other columns.

    How many rows repeat a prompt is said: the first one's columns count. Rows without a prompt are left out, with a
    warning.

    Args:
        data_dir: hub name or local folder (`split` applies), or a .json, .jsonl, .csv or .parquet file, possibly with
            .gz; .json and .jsonl hold objects or plain strings.
        column: holds texts, or conversations (the answers at their end are left out). Data without a column `prompt`
            may have the conversations in `messages` or `chosen`.
        keep: names of the columns to return with each prompt.

    Raises:
        UserError: no such data, split or column; or no prompt is left.
    """
    found: dict[Prompt, dict[str, Any]] = {}
    bad, repeats = [], 0
    for number, (value, columns) in enumerate(read_prompts(data_dir, split, column, keep)):
        try:
            prompt = read_prompt(value)
        except ValueError as error:
            bad.append(f"row {number}: {column} {error}")
            continue
        repeats += prompt in found
        found.setdefault(prompt, columns)
    if not found:
        raise UserError(f"data_dir: {data_dir} holds no prompts" + (f" ({bad[0]})" if bad else ""))
    if bad:
        warn(f"data_dir: {data_dir}: {len(bad)} rows left out ({first_few(bad)})")
    if repeats:
        say(f"{data_dir}: {len(found)} distinct prompts; {repeats} rows repeat one of them")
    return {prompt: found[prompt] for prompt in sorted(found, key=prompt_text)[:limit]}


def read_part(text: str) -> tuple[int, int]:
    """The number of a part, from 1, and how many there are, of "2/8".

    Raises:
        UserError: it is no such text.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"part: {text!r}: give its number, from 1, and how many there are: 2/8 is the second of eight")
    return int(match[1]), int(match[2])


def part_of(prompts: dict[Prompt, dict[str, Any]], part: str) -> dict[Prompt, dict[str, Any]]:
    """A part of the prompts (see `read_part`): where a prompt belongs depends on its own text alone.

    Raises:
        UserError: no prompt belongs there.
    """
    number, count = read_part(part)
    found = {prompt: columns for prompt, columns in prompts.items() if prompt_digest(prompt) % count == number - 1}
    if not found:
        raise UserError(f"part: {part} of the {len(prompts)} prompts holds none: make fewer parts")
    return found


def read_prompts(data_dir: str, split: str, column: str, keep: Sequence[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the value of the prompt column and of the columns to keep, for each row.

    Raises:
        UserError: the data cannot be read, or have no such column.
    """
    rows = read_split(data_dir, split, "data_dir")
    if isinstance(rows, list):
        columns = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    else:
        columns = rows.column_names
    if missing := [name for name in keep if name not in columns]:
        raise UserError(f"keep_columns: {data_dir} has no column {missing[0]!r} (found: {', '.join(columns)})")
    if columns:
        column = choose_column(data_dir, columns, column)
    if not isinstance(rows, list):
        rows = rows.select_columns(list({column, *keep}))  # reading the others as well takes many times as long
    for row in rows:
        if isinstance(row, dict):
            yield row.get(column), {name: row.get(name) for name in keep}
        else:
            yield row, {}


def choose_column(data_dir: str, columns: list[str], column: str) -> str:
    """The column to read: the named one, or one that holds the prompts of conversations.

    Raises:
        UserError: there is none; names the likely one.
    """
    if column in columns:
        return column
    if column == "prompt" and (others := [name for name in CONVERSATIONS if name in columns]):
        say(f"{data_dir}: no column prompt; the prompts are the conversations in {others[0]}, less their last answers")
        return others[0]
    likely = [name for name in LIKELY if name in columns] or (columns if len(columns) == 1 else [])
    hint = f"; --prompt_column {likely[0]}?" if likely else ""
    raise UserError(f"prompt_column: {data_dir} has no column {column!r} (found: {', '.join(columns)}){hint}")
