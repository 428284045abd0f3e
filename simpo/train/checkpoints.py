"""Checkpoints: which one to resume from, and whether it is whole and of this run."""

import json
import zipfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, TrainingArguments

from simpo.console import UserError, say, warn

RUN_CONFIG = "run_config.yaml"


def checkpoint_flaw(folder: Path) -> str | None:
    """Say what keeps a checkpoint from being whole; None when nothing does.

    The trainer's state is written last, so a run killed while saving leaves it out; the other files are checked for
    their own ends, because a full disk or a lost machine can tear any of them.
    """
    state = folder / "trainer_state.json"
    try:
        json.loads(state.read_text())
    except (OSError, ValueError):
        return f"{state.name} is missing or torn"
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError):
            return f"{index.name} is torn"
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            return f"{missing[0]} is missing"
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
    folders = [p for p in Path(training_args.output_dir).glob("checkpoint-*") if p.name[11:].isdigit() and p.is_dir()]
    for folder in sorted(folders, key=lambda p: int(p.name[11:]), reverse=True):
        if flaw := checkpoint_flaw(folder):
            warn(f"skipping {folder}: {flaw} (the run was stopped while saving it)")
            continue
        say(f"resuming from {folder}")
        return str(folder)
    return None


def check_resumable(training_args: TrainingArguments, checkpoint: str | None, identity: dict[str, Any]) -> None:
    """Refuse to resume a checkpoint of another model or objective.

    Args:
        identity: what the runs must share, as `write_run_config` recorded it for the first.

    Raises:
        UserError: output_dir holds a checkpoint of another run.
    """
    if checkpoint is None:
        return
    known = read_run_config(training_args).get("identity", {})
    for key, value in identity.items():
        if key in known and known[key] != value:
            raise UserError(
                f"output_dir: {training_args.output_dir} holds a checkpoint of another run ({key}: {known[key]}, "
                f"now {value}); choose another output_dir or remove it"
            )


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


def read_run_config(training_args: TrainingArguments) -> dict[str, Any]:
    """What `write_run_config` recorded in output_dir; nothing where there is no record."""
    record = Path(training_args.output_dir) / RUN_CONFIG
    return (yaml.safe_load(record.read_text()) or {}) if record.is_file() else {}


def write_run_config(training_args: TrainingArguments, identity: dict[str, Any], settings: dict[str, Any]) -> None:
    """Record what a run was started with in output_dir/run_config.yaml."""
    if training_args.should_save:
        record = Path(training_args.output_dir) / RUN_CONFIG
        record.parent.mkdir(parents=True, exist_ok=True)
        beside = record.with_suffix(".tmp")
        beside.write_text(yaml.safe_dump({"identity": identity, "settings": settings}, sort_keys=False))
        beside.replace(record)
