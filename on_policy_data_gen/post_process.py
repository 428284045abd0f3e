"""Join the responses of all seeds by prompt: the second step of on-policy preference data.

    python post_process.py --generation_file_dir datasets/gemma2_ultrafeedback
    python post_process.py --generation_file_dir datasets/gemma2_ultrafeedback --drop_truncated

Reads generation_file_dir/output_{seed}.json (decode.py's; of the original's files, too) and writes there:
    all_outputs.json    one row per prompt, sorted by prompt: {prompt, all_generated_responses (in the seeds' order)}

Prompts whose responses are all identical are dropped: they make no pair.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, say
from simpo.files import read_rows, write_json
from simpo.folder import lock_folder

FIELDS = {"prompt": str, "generated_text": str}


@dataclass
class PostProcessArguments:
    """Where the responses are, and which to leave out."""

    generation_file_dir: str = field(
        default="datasets/gemma2_ultrafeedback", metadata={"help": "Folder with output_{seed}.json files."}
    )
    drop_truncated: bool = field(
        default=False, metadata={"help": "Leave out responses that max_tokens cut (finish_reason length)."}
    )
    allow_missing: bool = field(
        default=False, metadata={"help": "Go on when a seed lacks prompts, with the responses there are."}
    )


@command
def main() -> None:
    args = H4ArgumentParser(PostProcessArguments).parse()
    folder = Path(args.generation_file_dir)
    files = seed_files(folder)
    rows = {seed: read_seed(path, args.drop_truncated) for seed, path in files.items()}
    if not args.allow_missing:
        check_same_prompts(files, rows)
    joined, counts = join_by_prompt(rows, args.drop_truncated)
    if not joined:
        raise UserError(f"{folder}: no prompt is left ({describe(counts)}); decode more seeds, or relax the options")
    with lock_folder(folder):
        write_json(folder / "all_outputs.json", joined)
    say(f"{folder / 'all_outputs.json'}: seeds {', '.join(map(str, files))}; {describe(counts)}")


def seed_files(folder: Path) -> dict[int, Path]:
    """The folder's output_{seed}.json by seed, in numeric order.

    Raises:
        UserError: no such folder, fewer than two seeds, a file output*.json without a seed, or two of the same seed.
    """
    if not folder.is_dir():
        raise UserError(f"generation_file_dir: there is no folder {folder}")
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("output*.json")):
        match = re.fullmatch(r"output_(\d+)\.json", path.name)
        if match is None:
            raise UserError(f"generation_file_dir: {path}: expected a name like output_42.json; rename or remove it")
        if int(match[1]) in files:
            raise UserError(f"generation_file_dir: {path} and {files[int(match[1])]} are of the same seed; remove one")
        files[int(match[1])] = path
    if len(files) < 2:
        found = files[min(files)].name if files else "no output_{seed}.json"
        raise UserError(f"generation_file_dir: {folder} holds {found}; pairs need the responses of two seeds or more")
    return dict(sorted(files.items()))


def read_seed(path: Path, need_finish_reason: bool) -> dict[str, dict[str, Any]]:
    """Read one seed's rows by prompt.

    Raises:
        UserError: not JSON, a field is missing, or a prompt is empty or comes twice.
    """
    fields = FIELDS | ({"finish_reason": str} if need_finish_reason else {})
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(path, "generation_file_dir", fields)):
        where = f"generation_file_dir: {path}, row {number}"
        if not row["prompt"].strip():
            raise UserError(f"{where}: the prompt is empty; remove the row")
        if row["prompt"] in rows:
            raise UserError(f"{where}: repeats a prompt: {row['prompt'][:60]!r}; remove one")
        rows[row["prompt"]] = row
    return rows


def check_same_prompts(files: dict[int, Path], rows: dict[int, dict[str, Any]]) -> None:
    """Every seed must have answered the same prompts.

    Raises:
        UserError: names the first file that lacks prompts, how many, and one of them.
    """
    everything = set().union(*rows.values())
    for seed, path in files.items():
        if missing := sorted(everything - rows[seed].keys()):
            raise UserError(
                f"generation_file_dir: {path} lacks {len(missing)} of the {len(everything)} prompts of the seeds "
                f"together, such as {missing[0][:60]!r}; decode them, or pass --allow_missing"
            )


def join_by_prompt(
    rows: dict[int, dict[str, dict[str, Any]]], drop_truncated: bool = False
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Join the seeds' rows by prompt and drop the prompts that make no pair.

    Args:
        rows: by seed, in the order that the responses are to have: {prompt: {generated_text, finish_reason}}.

    Returns:
        The rows of all_outputs.json, and counts of prompts and responses by what became of them.
    """
    joined, counts = [], Counter()
    for prompt in sorted(set().union(*rows.values())):
        answers = [rows[seed][prompt] for seed in rows if prompt in rows[seed]]
        counts["prompts"] += 1
        counts["responses missing from a seed"] += len(rows) - len(answers)
        if drop_truncated:
            whole = [answer for answer in answers if answer["finish_reason"] != "length"]
            counts["truncated responses dropped"] += len(answers) - len(whole)
            answers = whole
        responses = [answer["generated_text"] for answer in answers]
        if len(responses) < 2:
            counts["prompts dropped: fewer than two responses left"] += 1
        elif len(set(responses)) == 1:
            counts["prompts dropped: all responses identical"] += 1
        else:
            counts["prompts kept"] += 1
            joined.append({"prompt": prompt, "all_generated_responses": responses})
    return joined, counts


def describe(counts: Counter[str]) -> str:
    return "; ".join(f"{count} {what}" for what, count in counts.items() if count)


if __name__ == "__main__":
    main()
