"""Folders of responses that post_process joins: which files they hold, and whether they are parts of one run."""

import re
from collections import Counter
from pathlib import Path

from simpo.console import UserError
from simpo.folder import recorded_settings, shorten

SETTINGS = "decode_settings.json"
OF_A_PART = {"part", "data_dir", "split", "prompt_column"}  # of decode's settings, those in which parts may differ


def seed_files(folders: list[Path]) -> dict[int, list[Path]]:
    """The folders' output_{seed}.json by seed, in numeric order.

    Raises:
        UserError: no such folder, one given twice, fewer than two seeds, a file output*.json without a seed, or two of
            the same seed.
    """
    files: dict[int, list[Path]] = {}
    repeated, times = Counter(folder.resolve() for folder in folders).most_common(1)[0]
    if times > 1:
        raise UserError(f"generation_file_dir: {repeated} is given twice")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"generation_file_dir: there is no folder {folder}")
        for path in sorted(folder.glob("output*.json")):
            match = re.fullmatch(r"output_(\d+)\.json", path.name)
            if match is None:
                raise UserError(
                    f"generation_file_dir: {path}: expected a name like output_42.json; rename or remove it"
                )
            same = files.setdefault(int(match[1]), [])
            if same and same[-1].parent == folder:
                raise UserError(f"generation_file_dir: {path} and {same[-1]} are of the same seed; remove one")
            same.append(path)
        if not any(path.parent == folder for paths in files.values() for path in paths):
            raise UserError(f"generation_file_dir: {folder} holds no output_{{seed}}.json; let decode.py end there")
    if len(files) < 2:
        found = ", ".join(str(path) for paths in files.values() for path in paths)
        raise UserError(f"generation_file_dir: only {found}; pairs need the responses of two seeds or more")
    return dict(sorted(files.items()))


def check_parts(folders: list[Path], allow_missing: bool) -> None:
    """Folders to join must be of one run: the same model and sampling, every part there.

    Raises:
        UserError: they are not; or a part is missing, unless that is allowed.
    """
    records = [recorded_settings(folder / SETTINGS) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        changed = [
            f"{key} {shorten(records[0].get(key))} and {shorten(record.get(key))}"
            for key in sorted(records[0].keys() | record.keys() - {"part"})
            if key not in OF_A_PART and records[0].get(key) != record.get(key)
        ]
        if changed:
            raise UserError(
                f"generation_file_dir: {folders[0]} and {folder} are no parts of one run ({'; '.join(changed)})"
            )
    parts = {tuple(map(int, record["part"].split("/"))) for record in records if record.get("part")}
    counts = {count for _, count in parts}
    if len(counts) > 1 or (parts and not all(record.get("part") for record in records)):
        given = ", ".join(str(record.get("part") or "all prompts") for record in records)
        raise UserError(f"generation_file_dir: the folders split the prompts in different ways ({given})")
    missing = [
        f"{number}/{count}" for count in counts for number in range(1, count + 1) if (number, count) not in parts
    ]
    if missing and not allow_missing:
        raise UserError(
            f"generation_file_dir: part {', '.join(missing)} is not among the folders; name them all, or pass "
            "--allow_missing"
        )
