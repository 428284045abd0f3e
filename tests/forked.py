"""decode.py in a process of its own, forked from one that has imported vLLM already: that is what takes long."""

import atexit
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from decode import main


class Started:
    """Runs of decode.py, one after the other, in one process.

    Args:
        argvs: their command lines, from the script's name on.
        environment: more variables.
        errors: file that gets the standard error.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["decode", "simpo.train.model", "vllm.v1.engine.llm_engine"])

    def __init__(self, *argvs: list[str], environment: Mapping[str, str] | None = None, errors: Path | None = None):
        self.process = self.context.Process(target=run_in_turn, args=(argvs, dict(environment or {}), errors))
        self.process.start()

    def finish(self) -> None:
        self.process.join(300)
        assert self.process.exitcode == 0


def run_in_turn(argvs: list[list[str]], environment: dict[str, str], errors: Path | None) -> None:
    os.environ.update(environment)
    if errors is not None:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    for argv in argvs:
        sys.argv = argv
        main()
    atexit._run_exitfuncs()  # as at a program's end, where vLLM ends its processes; a fork waits for them
