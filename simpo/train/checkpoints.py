"""Checkpoints: when one is whole, which one to resume from, and keeping them whole while they are written."""

import json
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.console import UserError, say, warn
from simpo.files import content_digest, flush_to_disk, set_aside, write_json

DIGESTS = "digests.json"
STATE = "trainer_state.json"
WRITTEN = {".json", ".jsonl", ".jinja", ".safetensors", ".pt", ".pth", ".bin"}
THREADS = 8  # files read at a time


def write_digests(folder: Path, *patterns: str) -> None:
    """Record the size and digest of files, once all of them are on the disk: {path in the folder: [bytes, digest]}.

    Reads everything back: a checkpoint of 100 GB takes as long as its disk needs for 100 GB, or less where the system
    still holds it in memory.

    Args:
        patterns: of the files' paths (default: all).
    """

    def entry(path: Path) -> tuple[str, list[Any]]:
        flush_to_disk(path)
        return path.relative_to(folder).as_posix(), [path.stat().st_size, content_digest(path)]

    found = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern)}
    files = sorted(path for path in found if path.is_file() and path.name != DIGESTS)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = dict(pool.map(entry, files))
    for place in {folder, *(path.parent for path in files)}:
        flush_to_disk(place)
    write_json(folder / DIGESTS, digests)
    flush_to_disk(folder.parent)


def torn_files(folder: Path) -> list[str]:
    """The files that are not what `write_digests` saw (itself, when that is torn), with what is wrong."""

    def flaw(entry: tuple[str, list[Any]]) -> str | None:
        name, (size, digest) = entry
        try:
            whole = (folder / name).stat().st_size == size and content_digest(folder / name) == digest
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if whole else f"{name} is torn"

    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        entries = [(name, [int(size), str(digest)]) for name, (size, digest) in digests.items()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return [f"{DIGESTS} is torn"]
    with ThreadPoolExecutor(THREADS) as pool:
        return [flaw for flaw in pool.map(flaw, entries) if flaw]


def read_state(folder: Path) -> dict[str, Any] | None:
    """The trainer's state in a folder; None when it is missing or torn."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) and isinstance(state.get("global_step"), int) else None


def checkpoint_flaw(folder: Path) -> str | None:
    """Say what keeps a checkpoint from being whole; None when nothing does.

    Its digests are written last and tell of every byte. One without them (of an older version, or whose writing was
    cut short by a moment) is judged by its trainer's state, which is the last of the other files, and by their ends.
    """
    if (folder / DIGESTS).exists():
        return next(iter(torn_files(folder)), None)
    if read_state(folder) is None:
        return f"{STATE} is missing or torn"
    if flaw := json_flaw(folder):
        return flaw
    return weights_flaw(folder)


def json_flaw(folder: Path) -> str | None:
    """Say which of a folder's JSON files is torn, or which file that an index names is missing."""
    for file in folder.glob("*.json"):
        try:
            content = dict(json.loads(file.read_text(encoding="utf-8")))
            shards = set(content["weight_map"].values()) if file.name.endswith(".index.json") else set()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{file.name} is torn"
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{missing[0]} is missing"
    return None


def set_folders_aside(folder: Path) -> None:
    """Clear the places of files that are to be written in a folder: no library can write where a folder stands."""
    for path in folder.glob("*"):
        if path.is_dir() and path.suffix in WRITTEN:
            set_aside(path, "is a folder")


def weights_flaw(folder: Path) -> str | None:
    """Say which of a folder's weights, or of the trainer's pickled files, has lost its start or its end."""
    for weights in folder.glob("*.safetensors"):
        try:
            with safe_open(weights, "pt"):
                pass
        except (SafetensorError, OSError):
            return f"{weights.name} is torn"
    for pickled in (p for pattern in ("*.pt", "*.pth", "*.bin") for p in folder.rglob(pattern)):
        if not zipfile.is_zipfile(pickled):
            return f"{pickled.name} is torn"
    return None


def checkpoints_in(output_dir: str) -> list[Path]:
    """Checkpoint folders by step, the newest first."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if p.name[11:].isdigit() and p.is_dir()]
    return sorted(folders, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def get_checkpoint(training_args: TrainingArguments) -> str | None:
    """The newest whole checkpoint in output_dir, or the one that resume_from_checkpoint names; None to start anew.

    Raises:
        UserError: the named checkpoint does not exist or is torn.
    """
    named = training_args.resume_from_checkpoint
    if named and named.lower() not in ("true", "false"):
        if not Path(named).is_dir():
            raise UserError(f"resume_from_checkpoint: {named} is not a folder")
        if flaw := checkpoint_flaw(Path(named)):
            raise UserError(f"resume_from_checkpoint: {named} is not a whole checkpoint: {flaw}")
        return named
    if named and named.lower() == "false":
        return None
    folders = checkpoints_in(training_args.output_dir)
    for number, folder in enumerate(folders):
        flaw = checkpoint_flaw(folder)
        if flaw is None and not (folder / DIGESTS).exists():
            # this version was writing it, if it wrote an older one
            older = any((other / DIGESTS).exists() for other in folders[number + 1 :])
            flaw = "the run was stopped while saving it" if older else None
        if flaw:
            warn(f"skipping {folder}: {flaw}")
            set_folders_aside(folder)
            continue
        say(f"resuming from {folder}")
        return str(folder)
    return None


def missing_part(checkpoint: Path, rank: int, processes: int) -> str | None:
    """Say what a process would look for in a checkpoint in vain: the folder, or its part of what ZeRO sharded."""
    if not checkpoint.is_dir():
        return f"process {rank} does not see {checkpoint}; it must be on a disk that all nodes share"
    parts = {path.name for path in checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")}
    if parts and not any(f"zero_pp_rank_{rank}_" in name for name in parts):
        return (
            f"{checkpoint} has no part for process {rank}: start as many processes as saved it, and keep it on a disk "
            "that all nodes share"
        )
    if len(parts) > processes:
        return f"{checkpoint} was saved by {len(parts)} processes, and these are {processes}: start as many"
    return None


class WholeCheckpoints(TrainerCallback):
    """Marks each checkpoint as whole (`write_digests`) before older ones go, once every process has written its part.

    transformers removes the older ones (`save_total_limit`) when the new one has left the process, not when it is on
    the disk; so that is done here.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():  # what the run that is resumed was stopped at
            remove_older(folder, self.limit, state.best_model_checkpoint)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_digests(folder)
            remove_older(folder, self.limit, state.best_model_checkpoint)


def remove_older(newest: Path, limit: int | None, best: str | None) -> None:
    """Keep the newest checkpoints up to the limit, and the best one in any case."""
    if not limit or limit < 1:
        return
    folders = [folder for folder in checkpoints_in(str(newest.parent)) if step_of(folder) <= step_of(newest)]
    kept = {newest, *([Path(best)] if best else [])}
    surplus = len(folders) - max(limit, len(kept))
    for folder in [folder for folder in reversed(folders) if folder not in kept][: max(0, surplus)]:
        shutil.rmtree(folder, ignore_errors=True)


def check_architecture(checkpoint: str | None, config: PretrainedConfig) -> None:
    """Refuse to resume a checkpoint whose model has another shape (one without a record of its run).

    Raises:
        UserError: the checkpoint's config.json differs in architecture or size.
    """
    file = Path(checkpoint or "") / "config.json"
    if checkpoint is None or not file.is_file():
        return
    saved = json.loads(file.read_text())
    for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if saved.get(key) != getattr(config, key, None):
            raise UserError(
                f"output_dir: {checkpoint} is a checkpoint of another model ({key}: {saved.get(key)}, "
                f"now {getattr(config, key, None)}); choose another output_dir or remove it"
            )
