"""simpo/engine: an engine's processes never outlive the one that started them; vLLM's defaults for offline use."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_jsonl
from forked import Started

from simpo.engine import guard
from simpo.engine.vllm import engine_settings, start_engine

SLEEPER = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {0!r}]).pid, flush=True); {0}"
STARTER = """
import os, subprocess, sys, time
from simpo.engine.guard import end_with_this_process
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # before: it is none of the engine's
end_with_this_process()
end_with_this_process()
child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
print(os.environ["SIMPO_ENGINE"], child.pid, flush=True)
{then}
"""


def wait_until(true: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_what_was_started_ends_with_its_starter(end):
    """... killed, terminated, or left through os._exit; grandchildren in a session of their own, too."""
    child = SLEEPER.format("import time; time.sleep(600)")
    code = STARTER.format(child=child, then="sys.stdin.read(); os._exit(0)")
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)
    mark, _ = next(line for line in process.stdout if " " in line).split()  # the child writes there, too
    variable = f"{guard.MARK}={mark}".encode()
    wait_until(lambda: len(guard.marked(variable)) == 2)
    (bystander,) = set(children(process.pid)) - set(guard.marked(variable)) - watchers(process.pid)
    if end:
        process.send_signal(end)
    else:
        process.stdin.close()
    process.wait()
    wait_until(lambda: not guard.marked(variable))
    os.kill(bystander, signal.SIGKILL)  # it is there


def watchers(process: int) -> set[int]:
    return {c for c in children(process) if guard.__file__.encode() in Path(f"/proc/{c}/cmdline").read_bytes()}


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "engine"])
def test_no_engine_outlives_decode(llama, tmp_path, end):
    """In a process of its own, as on a GPU: decode.py ends while the engine starts, or the engine while it works."""
    data = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"What is {i}?"} for i in range(60)])
    argv = ["decode.py", "--model", llama, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    argv += ["--max_model_len", "512", "--dtype", "float32", "--max_num_seqs", "8", "--max_tokens", "64"]
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OF_THE_TEST": str(tmp_path)}
    decode = Started(argv, environment=environment, errors=tmp_path / "errors").process

    def engine() -> list[int]:  # decode.py itself is forked: its own environment is its parent's
        return guard.marked(f"OF_THE_TEST={tmp_path}".encode())

    def answered() -> bool:
        return any(path.stat().st_size for path in (tmp_path / "out" / "journal").glob("*.jsonl"))

    wait_until(lambda: (engine() and (end != "engine" or answered())) or not decode.is_alive())
    for process in engine() if end == "engine" else [decode.pid]:
        os.kill(process, signal.SIGKILL if end == "engine" else end)
    decode.join(600)
    wait_until(lambda: not engine())
    assert decode.exitcode == (0 if end == "engine" else -end), (tmp_path / "errors").read_text()
    if end == "engine":  # another one went on
        assert (tmp_path / "errors").read_text().count("engine 0 is lost (the engine's process has ended") == 1
        assert len(json.loads((tmp_path / "out" / "output_42.json").read_text())) == 60


@pytest.mark.slow
def test_defaults_are_those_of_offline_use(llama, monkeypatch):
    """... where the user chose nothing; vLLM's server, whose defaults are smaller, is not what runs."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    configs = []

    def init(self, vllm_config, **_):
        configs.append(vllm_config)
        self.engine_core = None

    monkeypatch.setattr(LLMEngine, "__init__", init)
    monkeypatch.setattr(EngineArgs, "get_batch_defaults", lambda *_: ({}, {UsageContext.LLM_CLASS: 1000}))
    start_engine(engine_settings(llama, "float32", 512, 1, None, False))
    start_engine(engine_settings(llama, "float32", 512, 1, None, False, 7, 0.5))
    assert [config.scheduler_config.max_num_seqs for config in configs] == [1000, 7]
    assert configs[1].cache_config.gpu_memory_utilization == 0.5
