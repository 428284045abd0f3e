"""What a launch decides of memory: how many processes there are, and what each of them holds a part of only."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import TrainingArguments

from simpo.console import UserError
from simpo.train.config import PreferenceConfig

WHOLE, ALL = frozenset(), frozenset({"weights", "gradients", "optimizer"})
OF_STAGE = {0: WHOLE, 1: frozenset({"optimizer"}), 2: ALL - {"weights"}, 3: ALL}
OF_STRATEGY = {"FULL_SHARD": ALL, "HYBRID_SHARD": ALL, "SHARD_GRAD_OP": ALL, "NO_SHARD": WHOLE}


@dataclass(frozen=True)
class Launch:
    processes: int
    how: str
    """one process, data parallel, ZeRO-1, ZeRO-2, ZeRO-3, or FSDP."""
    shards: frozenset[str] = WHOLE
    """Of weights, gradients and optimizer, what each process holds a part of only."""
    keeps_weights: bool = False
    """Weights, once gathered, stay until the backward pass is over."""
    offloads: bool = False
    """The optimizer's state is in the host's memory."""
    on_cpu: bool = False
    mixed_precision: str = "no"

    def __str__(self) -> str:
        return f"{self.processes} processes, {self.how}" if self.processes > 1 else self.how


def is_planned_elsewhere(args: TrainingArguments) -> bool:
    """Whether this is a dry run for a launch on other machines, where what this one has does not matter."""
    return isinstance(args, PreferenceConfig) and isinstance(args.dry_run, str)


def planned_launch(args: TrainingArguments) -> Launch:
    """The launch of the file that `dry_run` names, or this one.

    Raises:
        UserError: see `launch_from_file`.
    """
    return launch_from_file(args.dry_run) if is_planned_elsewhere(args) else this_launch(args)


def this_launch(args: TrainingArguments) -> Launch:
    """How this process and those beside it were started."""
    plugin = args.deepspeed_plugin
    deepspeed = fsdp = None
    if plugin is not None:
        deepspeed = {"zero_stage": plugin.zero_stage, "offload_optimizer_device": plugin.offload_optimizer_device}
    elif args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        fsdp = {key.lower(): value for key, value in os.environ.items() if key.startswith("FSDP_")}
    return launch(args.world_size, deepspeed, fsdp, args.device.type == "cpu", args.mixed_precision)


def launch_from_file(path: str) -> Launch:
    """What `accelerate launch --config_file PATH` would start.

    Raises:
        UserError: it is no configuration of accelerate's.
    """
    try:
        config = load_config_from_file(path)
        deepspeed = dict(config.deepspeed_config) if config.distributed_type == "DEEPSPEED" else None
        if deepspeed and (file := deepspeed.get("deepspeed_config_file")):
            zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization") or {}
            offload = (zero.get("offload_optimizer") or {}).get("device")
            deepspeed |= {"zero_stage": zero.get("stage", 0), "offload_optimizer_device": offload}
        fsdp = dict(config.fsdp_config) if config.distributed_type == "FSDP" else None
        return launch(int(config.num_processes), deepspeed, fsdp, bool(config.use_cpu), config.mixed_precision or "no")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"dry_run: {path} is no configuration of accelerate launch: {error}") from error


def launch(
    processes: int, deepspeed: dict[str, Any] | None, fsdp: dict[str, Any] | None, on_cpu: bool, mixed_precision: str
) -> Launch:
    common = {"on_cpu": on_cpu, "mixed_precision": mixed_precision}
    if deepspeed is not None:
        stage = int(deepspeed.get("zero_stage") or 0)
        offloads = deepspeed.get("offload_optimizer_device") in ("cpu", "nvme")
        return Launch(processes, f"ZeRO-{stage}", OF_STAGE[stage], offloads=offloads, **common)
    if fsdp is not None:
        strategy = str(fsdp.get("fsdp_sharding_strategy", "FULL_SHARD")).upper()
        strategy = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD"}.get(
            strategy, strategy
        )
        keeps = strategy == "SHARD_GRAD_OP" or str(fsdp.get("fsdp_reshard_after_forward")).lower() == "false"
        offloads = str(fsdp.get("fsdp_offload_params")).lower() == "true"
        return Launch(processes, "FSDP", OF_STRATEGY[strategy], keeps, offloads, **common)
    return Launch(processes, "data parallel" if processes > 1 else "one process", **common)
