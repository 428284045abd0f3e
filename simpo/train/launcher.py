"""What a training process does before its arguments are parsed, and what its machine and launcher decide.

Locks that a killed run leaves behind: DeepSpeed compiles an extension at its first start, under a lock file that
nothing removes if the run is killed meanwhile, and every later run would wait for it forever.
"""

import os
import socket
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.config.parser import COMMAND_LINE
from simpo.console import UserError, warn
from simpo.train.launch_plan import is_planned_elsewhere, planned_launch
from simpo.train.weights import unusable_attention

PUBLISHED_ATTENTION = "flash_attention_2"  # in files written for other machines
NVIDIA = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"))  # signs of a device
MPI_SIZES = {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}


def parse_arguments(config_class: type[TrainingArguments]) -> tuple[ModelArguments, DataArguments, Any]:
    """Parse a training script's command line on this machine: the CPU without an accelerator, the launcher's bf16.

    Where the flash attention of a YAML file cannot run, PyTorch's own attention takes its place; where that of the
    command line cannot, it is an error later on.

    Returns:
        The model's, the data's and the trainer's arguments, the last of `config_class`.

    Raises:
        UserError: see `H4ArgumentParser.parse`, `check_meeting_point` and `check_device`.
    """
    check_meeting_point()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        remove_stale_build_locks()
    defaults = {}
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found no GPU
        defaults["use_cpu"] = True
    bf16 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    if bf16:
        defaults["bf16"] = True
    parser = H4ArgumentParser((ModelArguments, DataArguments, config_class))
    model_args, data_args, args = parser.parse(defaults=defaults)
    if is_planned_elsewhere(args):
        bf16 = planned_launch(args).mixed_precision == "bf16"
    elif not (args.use_cpu and "use_cpu" in parser.given):
        check_device()
    attention = model_args.attn_implementation
    of_a_file = (
        not is_planned_elsewhere(args)
        and attention == PUBLISHED_ATTENTION
        and parser.given.get("attn_implementation") != COMMAND_LINE
    )
    if of_a_file and (why := unusable_attention(attention)):
        warn(f"attn_implementation: {attention} {why}: using PyTorch's own attention instead")
        model_args.attn_implementation = None
    if bf16 and not args.bf16:
        if "bf16" in parser.given:
            warn("bf16: false gives way to the accelerate configuration's mixed_precision: bf16")
        args.bf16, args.mixed_precision = True, "bf16"
    return model_args, data_args, args


def check_meeting_point() -> None:
    """Check that this process and the others can find each other.

    Nodes that `accelerate launch` gives different ports never get here: they wait for one another in the launcher.

    Raises:
        UserError: there are others, and no port to meet them at.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("MASTER_PORT") == "0":
        raise UserError("MASTER_PORT: with port 0 the processes never meet; give all nodes the same free port")
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if launched and not os.environ.keys() & {"WORLD_SIZE", *MPI_SIZES}:
        warn(
            "this process is alone: accelerate launch --cpu (or MULTI_CPU) starts one run on each machine, which do "
            "not work together; several processes on CPUs need a configuration with use_cpu: true (docs/multinode.md)"
        )


def check_device() -> None:
    """Refuse to train on the CPU in silence, for weeks, beside an NVIDIA device.

    Raises:
        UserError: there is one that torch cannot use although it is built for it, and nobody asked for the CPU.
    """
    asked = parse_flag_from_env("ACCELERATE_USE_CPU") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if asked or torch.accelerator.is_available() or not any(sign.exists() for sign in NVIDIA):
        return
    if torch.version.cuda is None:
        warn(f"training on the CPU: torch {torch.__version__} is built without CUDA, and cannot use the NVIDIA device")
        return
    raise UserError(
        f"torch {torch.__version__} cannot use this machine's NVIDIA device: CUDA {torch.version.cuda} takes a newer "
        "driver (CUDA 13.0: 580 or later; nvidia-smi shows which is there); to train on the CPU, set use_cpu: true"
    )


def remove_stale_build_locks() -> None:
    """Remove the compiler's lock files that no process on this machine holds; the first process of each node does.

    Several nodes may share a home folder, and none sees what the others hold: each compiles into a folder of its own.
    """
    from torch.utils.cpp_extension import get_default_build_root  # imports compilers' settings: slow

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    processes, node = os.environ.get("WORLD_SIZE", "1"), socket.gethostname()
    if os.environ.get("LOCAL_WORLD_SIZE", processes) != processes and root.name != node:
        root /= node
        os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    locks = [lock.resolve() for lock in root.glob("*/*/lock")] + [lock.resolve() for lock in root.glob("*/lock")]
    held = open_files() if locks else set()  # after listing: whoever made a listed lock has it open by now
    for lock in locks:
        if str(lock) not in held:
            warn(f"removing {lock}, left by a run that was killed while compiling")
            lock.unlink(missing_ok=True)


def open_files() -> set[str]:
    """Paths that this user's processes have open (Linux; empty elsewhere)."""
    paths = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            paths.add(os.readlink(descriptor))
        except OSError:  # closed meanwhile, or another user's
            continue
    return paths
