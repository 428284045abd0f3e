"""What a folder of decode.py holds: finished responses, by seed and prompt, and prompts that cannot be answered."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conversations import Prompt, prompt_text, read_prompt, to_json
from simpo.console import say, warn
from simpo.files import read_rows, write_json
from simpo.folder import Journal
from truncation import is_cut, warn_of_cut

SKIPPED = "skipped_prompts.json"
TEXTS = {"format_prompt": str, "generated_text": str, "finish_reason": str, "num_tokens": int}
FIELDS = ("prompt", *TEXTS)
Done = dict[int, dict[Prompt, dict[str, Any]]]


def has_output(folder: Path) -> bool:
    return any(folder.glob("output_*.json")) or any(Journal.read(folder, "output_*.jsonl"))


def seeds_of(folder: Path) -> list[int]:
    """The seeds whose output_{seed}.json the folder holds."""
    names = (path.stem.removeprefix("output_") for path in folder.glob("output_*.json"))
    return sorted(int(name) for name in names if name.isdecimal())


def finished_responses(folder: Path, seeds: Iterable[int]) -> Done:
    """Rows that earlier runs finished, by seed and prompt: of the final files and of the journals."""
    return {
        seed: by_prompt([*output_rows(folder, seed), *Journal.read(folder, f"output_{seed}.*.jsonl", TEXTS)])
        for seed in seeds
    }


def output_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    path = folder / f"output_{seed}.json"
    return read_rows(path, "output_dir", TEXTS) if path.is_file() else []


def by_prompt(rows: Iterable[dict[str, Any]]) -> dict[Prompt, dict[str, Any]]:
    """Rows by their prompts, without those that have none."""
    found = {}
    for row in rows:
        try:
            found[read_prompt(row.get("prompt"))] = row
        except ValueError:
            continue
    return found


def read_skipped(folder: Path) -> dict[Prompt, dict[str, Any]]:
    path = folder / SKIPPED
    return by_prompt(read_rows(path, "output_dir", {}) if path.is_file() else [])


def write_skipped(folder: Path, prompts: Iterable[Prompt], skipped: dict[Prompt, dict[str, Any]]) -> None:
    """Write the skipped ones of these prompts, or no file where there are none."""
    rows = [skipped[prompt] for prompt in prompts if prompt in skipped]
    if rows:
        write_json(folder / SKIPPED, rows)
    else:
        (folder / SKIPPED).unlink(missing_ok=True)


def skipped_row(prompt: Prompt, reason: str, num_tokens: int | None = None) -> dict[str, Any]:
    return {"prompt": to_json(prompt), "reason": reason, "num_tokens": num_tokens}


def write_outputs(folder: Path, prompts: dict[Prompt, dict[str, Any]], seeds: list[int]) -> None:
    """Write the file of every seed in `seeds` or in the folder: the responses to these prompts, sorted, with columns.

    What answers other prompts, which were in the data once, is kept in a journal and used again when they come back.
    """
    wanted, gone = set(prompts), set()
    for seed in sorted({*seeds, *seeds_of(folder)}):
        path, done = folder / f"output_{seed}.json", finished_responses(folder, [seed])[seed]
        aside = by_prompt(Journal.read(folder, f"output_{seed}.aside.jsonl", TEXTS))
        if unwanted := [prompt for prompt in done if prompt not in wanted and prompt not in aside]:
            Journal(folder, f"output_{seed}.aside.jsonl", TEXTS).append(*(done[prompt] for prompt in unwanted))
            gone.update(unwanted)
        rows = [
            {name: done[prompt][name] for name in FIELDS} | prompts[prompt]
            for prompt in sorted(wanted & done.keys(), key=prompt_text)
        ]
        if seed in seeds or rows != output_rows(folder, seed):
            write_json(path, rows)
        if seed in seeds:
            Journal.remove(folder, f"output_{seed}.[0-9]*.jsonl")
            cut = sum(map(is_cut, rows))
            say(f"{path}: {len(rows)} responses, {cut} cut at their longest length")
            warn_of_cut(cut, len(rows))
        elif len(rows) < len(wanted):
            warn(f"{path} lacks {len(wanted) - len(rows)} of the prompts: add --seed {seed} to answer them")
    if gone:
        again = "; run post_process.py again" if (folder / "all_outputs.json").exists() else ""
        warn(
            f"{len(gone)} prompts of earlier runs are not in the data (or beyond --limit) now, such as "
            f"{prompt_text(min(gone, key=prompt_text))[:60]!r}: their responses left the output files{again}"
        )
