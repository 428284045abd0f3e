"""The prompts to answer: from the hub, a folder, a file, or a plain list."""

from pathlib import Path
from typing import Any

from simpo.console import UserError
from simpo.files import read_list

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def load_prompts(data_dir: str, split: str, column: str, limit: int | None = None) -> list[str]:
    """Return the distinct prompts, sorted (the first `limit` of them).

    A preference dataset has a row per pair, so the same prompt may come again there. In a list of prompts a repeated
    one is a mistake.

    Args:
        data_dir: hub name or local folder (`split` applies), a .parquet or .csv file, or a .json or .jsonl file of
            objects or of plain strings.

    Raises:
        UserError: no such data, split or column; a prompt is empty, no text, or repeated.
    """
    columns, prompts = read_prompts(data_dir, split, column)
    may_repeat = "chosen" in columns or "messages" in columns
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        where = f"data_dir: {data_dir}, row {number}"
        if problem := prompt_problem(prompt):
            raise UserError(f"{where}: {column} {problem}")
        if prompt in seen and not may_repeat:
            raise UserError(f"{where}: repeats the {column} of row {seen[prompt]}; remove one")
        seen.setdefault(prompt, number)
    if not seen:
        raise UserError(f"data_dir: {data_dir} holds no prompts")
    return sorted(seen)[:limit]


def prompt_problem(prompt: Any) -> str | None:
    """Say what is wrong with a prompt; None when nothing is."""
    if not isinstance(prompt, str):
        return f"must be text, found {type(prompt).__name__}"
    if not prompt.strip():
        return "is empty; remove the row"
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        return "is not valid Unicode text (half of a surrogate pair)"
    return None


def read_prompts(data_dir: str, split: str, column: str) -> tuple[list[str], list[Any]]:
    """Return the names of the data's columns (none for plain strings) and the values of the prompt column.

    Raises:
        UserError: the data cannot be read, or has no such column.
    """
    path = Path(data_dir)
    # a folder's file named after the split: the library would read train_prefs.jsonl as the split "train"
    path = next((file for suffix in SUFFIXES if (file := path / f"{split}{suffix}").is_file()), path)
    if path.is_file() and path.suffix in (".json", ".jsonl"):
        items = [item for _, item in read_list(path, "data_dir")]
        if all(isinstance(item, str) for item in items):
            return [], items
        if not all(isinstance(item, dict) for item in items):
            raise UserError(f"data_dir: {path} must hold objects with the prompt_column, or plain strings")
        columns = list(dict.fromkeys(name for item in items for name in item))
        prompts = [item.get(column) for item in items]
    else:
        from simpo.data.load import load_split

        dataset = read_table(path) if path.is_file() else load_split(data_dir, None, split, key="data_dir")
        columns = dataset.column_names
        prompts = dataset[column][:] if column in columns else []
    if column not in columns:
        raise UserError(f"prompt_column: {data_dir} has no column {column!r} (found: {', '.join(columns)})")
    return columns, prompts


def read_table(path: Path) -> Any:
    """Read a .parquet or .csv file as a Dataset.

    Raises:
        UserError: another kind of file, or not readable as what its name says.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    readers = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}
    if path.suffix not in readers:
        raise UserError(f"data_dir: {path}: a file must be one of {', '.join(SUFFIXES)}")
    try:
        return readers[path.suffix](str(path))
    except (DatasetGenerationError, ValueError) as error:
        raise UserError(f"data_dir: {path} cannot be read: {error}") from error
