"""Training scripts, one after the other, on CPU processes that shard; each says how much of the model a process holds.

accelerate launch --config_file CONFIG.yaml tests/sharded_on_cpu.py SCRIPT CONFIG [SCRIPT CONFIG ...]
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from gradients import FirstGradients
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from simpo.console import command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
start = AcceleratorState.__init__


def start_sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    """accelerate turns FSDP on for accelerators only."""
    start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)


class Held(TrainerCallback):
    """Between two steps, when what can be released is."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        weights = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        if args.process_index == 0:
            print(f"{args.output_dir}: {sum(weight.numel() for weight in weights)} weights held", flush=True)


@command
def main() -> None:
    AcceleratorState.__init__ = start_sharded
    PartialState.destroy_process_group = lambda self, group=None: None  # the next run goes on with it
    transformers.trainer.DEFAULT_CALLBACKS += [Held, FirstGradients]
    words = sys.argv[1:]
    for script, config in zip(words[::2], words[1::2], strict=True):
        sys.argv = [script, config]
        importlib.import_module(script).main.__wrapped__()  # the process goes on after it


main()
