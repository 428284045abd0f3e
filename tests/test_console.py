"""simpo/console.py: how a process ends."""

import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import jinja2
import pytest
import safetensors
import torch
import yaml
from conftest import ROOT

from simpo.console import LOST, Done, UserError, command, hold

OUTSIDE = [
    (UserError("key: one\n  two"), "error: key: one two"),
    (FileNotFoundError(2, "No such file or directory", "a/b"), "error: a/b: No such file or directory (SIMPO"),
    (OSError(28, "No space left on device"), "error: No space left on device (SIMPO"),
    (ConnectionError("refused"), "error: ConnectionError: refused (SIMPO"),
    (MemoryError(), "error: out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: out of memory: CUDA out of memory. Tried"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: out of memory: DefaultCPUAllocator"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error: UnicodeDecodeError: 'utf-8' codec"),
    (jinja2.TemplateSyntaxError("unexpected '}'", 3), "error: TemplateSyntaxError: unexpected '}'"),
    (yaml.YAMLError("found a tab"), "error: YAMLError: found a tab"),
    (safetensors.SafetensorError("header too large"), "error: SafetensorError: header too large"),
]


def raising(error: BaseException):
    @command
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(("error", "line"), OUTSIDE, ids=lambda value: type(value).__name__)
def test_what_comes_from_outside_is_one_line(error, line, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        raising(error)()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith(line) and err.count("\n") == 1
    monkeypatch.setenv("SIMPO_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        raising(error)()
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), ZeroDivisionError(), TypeError()])
def test_programming_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        raising(error)()


def test_nothing_left_to_do(capsys):
    raising(Done("finished"))()
    assert capsys.readouterr().out == "finished\n"


@pytest.mark.parametrize("error", [None, UserError("x"), ValueError("x"), Done("x")])
def test_what_a_command_holds_ends_with_it(error):
    ends = []

    @contextmanager
    def context():
        yield "held"
        ends.append("first")

    @contextmanager
    def surviving():
        try:
            yield
        finally:
            ends.append("ended")

    @command
    def main() -> None:
        assert hold(context()) == "held"
        hold(surviving())
        if error:
            raise error

    with suppress(SystemExit, ValueError):
        main()
    assert ends == (["ended"] if error else ["ended", "first"])


SCRIPT = """
import atexit, os, sys, time
from simpo.console import UserError, command

@command
def main():
    {body}

class Abort:
    def __del__(self):
        os.abort()

atexit.register(print, "last values")
abort = Abort()
main()
raise SystemExit(77)
"""


def run(body: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        **{"cwd": ROOT, "env": os.environ | env, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )


@pytest.mark.parametrize(
    ("body", "status"), [("pass", 0), ("raise UserError('x')", 2), ("open('/nowhere')", 2), ("1 / 0", 1)]
)
def test_status_of_one_of_several_processes(body, status):
    """A failure after all work is not lost, and what a library's destructors do changes nothing."""
    with run(body, WORLD_SIZE="2", RANK="0") as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == status or (status == 1 and process.returncode < 0), err
    assert out == "last values\n" and ("Traceback" in err) == (status == 1)


AT_ONCE = "import simpo.console; simpo.console.GRACE = 0.1"


@pytest.mark.parametrize("local_rank", ["0", "1"])  # of another node, where the first speaks first
def test_another_process_speaks_where_the_launcher_leaves_it(local_rank):
    with run(f"{AT_ONCE}; raise UserError('its own')", WORLD_SIZE="2", RANK="1", LOCAL_RANK=local_rank) as process:
        assert process.communicate(timeout=600)[1] == "error: process 1: its own\n"


GONE = [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:34110",
    "[1] is setting up NCCL communicator: recvValue failed: Connection reset by peer",
]


@pytest.mark.parametrize(("rank", "start"), [("0", "error: "), ("1", "error: process 1: ")])
def test_a_process_that_lost_another_says_so_in_one_line(rank, start):
    with run(f"{AT_ONCE}; raise RuntimeError({GONE[int(rank)]!r})", WORLD_SIZE="2", RANK=rank) as process:
        assert process.communicate(timeout=600)[1] == f"{start}{LOST}\n"
    assert process.returncode == 2


def test_a_lone_process_has_lost_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="Connection closed"):
        raising(RuntimeError(GONE[0]))()


def test_a_fault_of_another_process_comes_with_its_number():
    with run(f"{AT_ONCE}; 1 / 0", WORLD_SIZE="2", RANK="1") as process:
        assert process.communicate(timeout=600)[1].endswith("ZeroDivisionError: division by zero\n(in process 1)\n")


def test_ctrl_c_during_imports_prints_one_line():
    body = "import os, signal, simpo.console; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(600)"
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background does not hear it
    command = [sys.executable, "-c", body]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, preexec_fn=heard)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "error: stopped by Ctrl-C\n")


FORKED = "os.fork(); os.write(1, b'up\\n'); [time.sleep(0.1) for _ in range(6000)]"


def test_ctrl_c_prints_one_line_and_ends_forked_workers_silently():
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=FORKED)],
        **{"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True},
    ) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        _, err = process.communicate(timeout=600)
    assert lines == ["up\n"] * 2
    assert err == "error: stopped by Ctrl-C; the same command goes on with what is finished\n"
    assert process.returncode in (130, -signal.SIGABRT)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own way of Linux")
@pytest.mark.parametrize("launched", [True, False])
def test_a_process_ends_with_its_launcher(tmp_path, launched):
    """The launcher here: a Python that starts a command and waits; it is killed."""
    child = tmp_path / "child"
    body = f"open({str(child)!r}, 'w').write(str(os.getpid()) + ' '); time.sleep({600 if launched else 1})"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SCRIPT.format(body=body)!r}])"
    env = os.environ | ({"ACCELERATE_MIXED_PRECISION": "no"} if launched else {})
    with subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, env=env, stdout=subprocess.PIPE) as process:
        while not (child.exists() and child.read_text().endswith(" ")):
            time.sleep(0.05)
        process.kill()
        out = process.stdout.read()  # until the child has ended as well
    assert out == (b"" if launched else b"last values\n")
