"""Join the responses of all seeds by prompt: the second step of on-policy preference data.

    python post_process.py --generation_file_dir datasets/gemma2_ultrafeedback
    python post_process.py --generation_file_dir datasets/gemma2_ultrafeedback --drop_truncated
    python post_process.py --generation_file_dir parts/1 parts/2 parts/3 --output_dir datasets/gemma2_ultrafeedback

Reads output_{seed}.json (decode.py's; of the original's files, too) in generation_file_dir, where several folders are
parts of one run (decode's --part, or one for each seed), and writes to output_dir, by default the first folder:
    all_outputs.json    one row per prompt, sorted by prompt: {prompt, all_generated_responses (in the seeds' order)};
                        where a response was cut, also finish_reasons ("stop", "length"; null: not known); and the
                        prompt's other columns (see decode's --keep_columns)

Prompts whose responses are all identical are dropped: they make no pair. Rows that cannot be read are left out.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candidates import MADE
from conversations import Prompt, check_unicode, prompt_text, read_prompt, to_json
from joined import check_parts, seed_files
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, say, warn
from simpo.files import read_list, write_json
from simpo.folder import lock_folder
from truncation import is_cut, warn_of_cut

SeedRows = dict[Prompt, dict[str, Any] | None]
"""One seed's rows by prompt; None: its response cannot be used."""


CUT = "responses cut at their longest length"


@dataclass
class PostProcessArguments:
    """Where the responses are, and which to leave out."""

    generation_file_dir: str | list[str] = field(
        default="datasets/gemma2_ultrafeedback",
        metadata={"help": "Folder with output_{seed}.json files, or several that are parts of one run."},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the result (default: the first generation_file_dir)."}
    )
    drop_truncated: bool = field(
        default=False,
        metadata={"help": "Leave out responses that were cut (finish_reason length), or end in their thoughts."},
    )
    allow_missing: bool = field(
        default=False, metadata={"help": "Go on when a seed lacks prompts, with the responses there are."}
    )


@command
def main() -> None:
    args = H4ArgumentParser(PostProcessArguments).parse()
    given = args.generation_file_dir
    folders = [Path(name) for name in ([given] if isinstance(given, str) else given)]
    files = seed_files(folders)
    if len(folders) > 1:
        check_parts(folders, args.allow_missing)
    rows = {seed: read_parts(paths, args.drop_truncated) for seed, paths in files.items()}
    if not args.allow_missing:
        check_same_prompts(files, rows)
    joined, counts = join_by_prompt(rows, args.drop_truncated)
    if not joined:
        names = ", ".join(map(str, folders))
        raise UserError(f"{names}: no prompt is left ({describe(counts)}); decode more seeds, or relax the options")
    folder = Path(args.output_dir) if args.output_dir is not None else folders[0]
    with lock_folder(folder):
        write_json(folder / "all_outputs.json", joined)
    say(f"{folder / 'all_outputs.json'}: seeds {', '.join(map(str, files))}; {describe(counts)}")
    if not args.drop_truncated:
        warn_of_cut(counts[CUT], counts["responses"])


def read_parts(paths: list[Path], need_finish_reason: bool) -> SeedRows:
    """Read one seed's rows by prompt, of all folders that have it.

    Raises:
        UserError: see `read_seed`; or two folders answer the same prompt.
    """
    rows: SeedRows = {}
    for number, path in enumerate(paths):
        found = read_seed(path, need_finish_reason)
        if both := sorted(map(prompt_text, rows.keys() & found.keys())):
            other = next(p for p in paths[:number] if read_seed(p, need_finish_reason).keys() & found.keys())
            raise UserError(
                f"generation_file_dir: {other} and {path} both answer {len(both)} prompts, such as {both[0][:60]!r}; "
                "leave one of them out"
            )
        rows |= found
    return rows


def read_seed(path: Path, need_finish_reason: bool) -> SeedRows:
    """Read one seed's rows by prompt. Rows that cannot be used are left out, with a warning; so are repeated prompts.

    Raises:
        UserError: not JSON, or no row can be used.
    """
    rows: SeedRows = {}
    left_out, repeated = [], []
    for place, row in read_list(path, "generation_file_dir"):
        prompt = None
        try:
            prompt = read_row_prompt(row)
            if rows.get(prompt) is not None:
                repeated.append(place)
                continue
            rows[prompt] = None
            check_response(row, need_finish_reason)
            rows[prompt] = row
        except ValueError as error:
            left_out.append(f"{place}: {error}")
    where = f"generation_file_dir: {path}"
    if left_out and not any(rows.values()):
        raise UserError(f"{where}, {left_out[0]}")
    if left_out:
        warn(f"{where}: {len(left_out)} rows left out, such as {left_out[0]}")
    if repeated:
        warn(f"{where}: {len(repeated)} rows repeat a prompt, such as {repeated[0]}: the first response of each counts")
    return rows


def read_row_prompt(row: Any) -> Prompt:
    """Raises ValueError, saying why, for what is no row or has no prompt."""
    if not isinstance(row, dict) or "prompt" not in row:
        raise ValueError("must be an object with prompt and generated_text")
    try:
        return read_prompt(row["prompt"])
    except ValueError as error:
        raise ValueError(f"the prompt {error}") from error


def check_response(row: dict[str, Any], need_finish_reason: bool) -> None:
    """Raises ValueError, saying why, for a row whose response cannot be used."""
    for name in ("generated_text", "finish_reason") if need_finish_reason else ("generated_text",):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name} is {type(row.get(name)).__name__}, must be str")
    check_unicode(row["generated_text"])


def check_same_prompts(files: dict[int, list[Path]], rows: dict[int, SeedRows]) -> None:
    """Every seed must have answered the same prompts.

    Raises:
        UserError: names the first file that lacks prompts, how many, and one of them.
    """
    everything = set().union(*rows.values())
    for seed, paths in files.items():
        if missing := sorted(map(prompt_text, everything - rows[seed].keys())):
            folders = {path.parent for others in files.values() for path in others}
            without = sorted(str(folder / f"output_{seed}.json") for folder in folders - {p.parent for p in paths})
            raise UserError(
                f"generation_file_dir: {', '.join(map(str, paths))} lacks {len(missing)} of the {len(everything)} "
                f"prompts of the seeds together, such as {missing[0][:60]!r}"
                f"{f' (there is no {without[0]})' if without else ''}; decode them, or pass --allow_missing"
            )


def join_by_prompt(
    rows: dict[int, SeedRows], drop_truncated: bool = False
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Join the seeds' rows by prompt and drop the prompts that make no pair.

    Args:
        rows: by seed, in the order that the responses are to have.

    Returns:
        The rows of all_outputs.json, and counts of prompts and responses by what became of them.
    """
    joined, counts = [], Counter()
    for prompt in sorted(set().union(*rows.values()), key=prompt_text):
        answers = [row for seed in rows if (row := rows[seed].get(prompt)) is not None]
        counts["prompts"] += 1
        counts["responses"] += len(answers)
        counts["responses missing from a seed"] += len(rows) - len(answers)
        cut = [is_cut(answer) for answer in answers]
        counts[CUT] += sum(cut)
        if drop_truncated:
            answers = [answer for answer, is_short in zip(answers, cut, strict=True) if not is_short]
            counts["truncated responses dropped"] += sum(cut)
        responses = [answer["generated_text"] for answer in answers]
        if len(responses) < 2:
            counts["prompts dropped: fewer than two responses left"] += 1
        elif len(set(responses)) == 1:
            counts["prompts dropped: all responses identical"] += 1
        else:
            counts["prompts kept"] += 1
            row = {"prompt": to_json(prompt), "all_generated_responses": responses}
            row |= columns_of(answers)
            if any(map(is_cut, answers)):
                row["finish_reasons"] = ["length" if is_cut(a) else a.get("finish_reason") for a in answers]
            joined.append(row)
    return joined, counts


def columns_of(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of the prompt's own row (see decode's --keep_columns): what all its answers' rows have alike."""
    first, *others = answers
    return {k: v for k, v in first.items() if k not in MADE and all(k in o and o[k] == v for o in others)}


def describe(counts: Counter[str]) -> str:
    return "; ".join(f"{count} {what}" for what, count in counts.items() if count)


if __name__ == "__main__":
    main()
