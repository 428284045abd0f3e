"""The processes that `accelerate launch` (or torchrun) started, one per GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple


class Processes(NamedTuple):
    """This process among those that accelerate launch (or torchrun) started."""

    rank: int
    count: int

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the launcher's processes. They only wait for one another, so CPU messages do, whatever the devices."""
    import torch.distributed

    processes = Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if processes.count == 1:
        yield processes
        return
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # the fastest waits for the slowest
    yield processes
    torch.distributed.destroy_process_group()
