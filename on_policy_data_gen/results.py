"""The files that annotate leaves: scores, pairs, and the pairs as the splits that training reads."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from candidates import is_text
from conversations import prompt_digest, to_json, to_messages
from simpo.console import UserError
from simpo.files import write_json


def scored_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of all_outputs_rm.json."""
    made = {name: row[name] for name in ("all_generated_responses", "all_rm_scores")}
    return {"prompt": to_json(row["prompt"]), **made, **row["columns"]}


def pair_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of all_outputs_bin.json."""
    messages = to_messages(row["prompt"])
    answers = {side: row["all_generated_responses"][row[f"{side}_index"]] for side in ("chosen", "rejected")}
    return scored_row(row) | {
        side: [*messages, {"role": "assistant", "content": answer}] for side, answer in answers.items()
    }


def write_results(
    folder: Path, rows: dict[str, list[dict]], pairs: dict[str, list[dict]], test_fraction: float, counts: Counter
) -> None:
    """Write the JSON files and the datasets folder, whose prompts are all texts or all messages: one type a column.

    Raises:
        UserError: too few pairs are left for two splits.
    """
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    splits = pairs if "test" in pairs else split_pairs(pairs["train"], test_fraction)
    if empty := [split for split in ("train", "test") if not splits[split]]:
        dropped = "; ".join(f"{count} {what}" for what, count in counts.items() if count and "dropped" in what)
        raise UserError(
            f"no pairs are left for the {empty[0]} split{f' ({dropped})' if dropped else ''}: give more prompts, or "
            "lower min_margin"
        )
    write_split_files(folder, "rm", rows, scored_row)
    write_split_files(folder, "bin", pairs, pair_row)
    beside, place = folder / "datasets.tmp", folder / "datasets"
    shutil.rmtree(beside, ignore_errors=True)
    everything = [row for split in splits.values() for row in split]
    mixed = mixed_columns(everything)
    texts = all(isinstance(row["prompt"], str) for row in everything)

    def training_row(row: dict[str, Any]) -> dict[str, Any]:
        columns = {name: json.dumps(row["columns"].get(name)) for name in mixed}
        return pair_row(row) | columns | ({} if texts else {"prompt": to_messages(row["prompt"])})

    saved = {split: Dataset.from_list([training_row(row) for row in splits[split]]) for split in ("train", "test")}
    DatasetDict(saved).save_to_disk(beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)


def write_split_files(
    folder: Path, name: str, content: dict[str, list[dict]], form: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Write all_outputs_NAME.json and, where there are test prompts, all_outputs_NAME_test.json."""
    for split, suffix in (("train", ""), ("test", "_test")):
        path = folder / f"all_outputs_{name}{suffix}.json"
        if split in content:
            write_json(path, [form(row) for row in content[split]])
        else:
            path.unlink(missing_ok=True)  # of an earlier run with test prompts


def mixed_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Columns of the prompts' rows that arrow has no one type for; the datasets folder holds them as JSON."""
    kinds: dict[str, set[type]] = defaultdict(set)
    for row in rows:
        for name, value in row["columns"].items():
            plain = isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63) or is_text(value)
            kinds[name].add(type(value) if plain or value is None else object)
    return [name for name, found in kinds.items() if len(found - {type(None)}) > 1 or object in found]


def split_pairs(pairs: list[dict[str, Any]], fraction: float) -> dict[str, list[dict[str, Any]]]:
    """Hold out a part of the pairs (at least one), picked by a hash of the prompt: the same ones whatever the order."""
    order = sorted(pairs, key=lambda row: prompt_digest(row["prompt"]))
    held_out = {row["prompt"] for row in order[: max(1, round(fraction * len(pairs)))]}
    return {
        "train": [row for row in pairs if row["prompt"] not in held_out],
        "test": [row for row in pairs if row["prompt"] in held_out],
    }
