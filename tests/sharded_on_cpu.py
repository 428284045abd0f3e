"""Training scripts, one after the other, on CPU processes that shard; accelerate turns FSDP on for accelerators only.

accelerate launch --config_file FSDP.yaml tests/sharded_on_cpu.py SCRIPT CONFIG [SCRIPT CONFIG ...]
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState

from simpo.console import command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
start = AcceleratorState.__init__


def start_sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)


@command
def main() -> None:
    AcceleratorState.__init__ = start_sharded
    PartialState.destroy_process_group = lambda self, group=None: None  # the next run goes on with it
    words = sys.argv[1:]
    for script, config in zip(words[::2], words[1::2], strict=True):
        sys.argv = [script, config]
        importlib.import_module(script).main.__wrapped__()  # the process goes on after it


main()
