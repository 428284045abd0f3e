"""Programs started in a twentieth of the time: each is forked from a process that has imported the libraries already.

    started = warm.start(folder)        ...         started.stdin.close()  # it ends

`folder` gets a `python`, to be put first in PATH and to be named by PYTHON_EXEC (whom torch's launcher starts). Called
with a script it is a process as any other: arguments, environment, working folder, standard streams and exit status are
its own, and what kills it kills the script. But the libraries have read the environment of the first process when they
were imported, and the script is not its caller's child. With anything else than a script it is Python itself.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import torch

from simpo.engine.vllm import set_defaults

LIBRARIES = ("datasets", "peft", "transformers.trainer", "trl", "vllm.v1.engine.llm_engine")
PYTHON = """#!{executable} -IS
import json, os, socket, sys
words = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
if not words or not words[0].endswith(".py"):
    os.execv({executable!r}, [{executable!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect({address!r})
    request = {{"words": words, "environment": dict(os.environ), "folder": os.getcwd()}}
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    status = int(connection.recv(100) or 1)
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def start(folder: Path) -> subprocess.Popen:
    """Start the process that programs are forked from; `folder`'s path must be short, as those of sockets are."""
    address, python = str(folder / "socket"), folder / "python"
    python.write_text(PYTHON.format(executable=sys.executable, address=address))
    python.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(address)
        listener.listen(100)  # who comes while the libraries are imported waits
        return subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for pytest
        )


def serve(listener: socket.socket) -> None:
    set_defaults()
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those below
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:  # closed
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            watch(connection)
        connection.close()


def watch(connection: socket.socket) -> None:
    """Fork the program, and tell its status; it is killed with all its processes when nobody is there to be told."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    program = os.fork()
    if program == 0:
        connection.close()
        os.setpgid(0, 0)
        run(streams, **json.loads(message))
    ended = os.pidfd_open(program)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        os.killpg(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    if ended in ready:
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def run(streams: list[int], words: list[str], environment: dict[str, str], folder: str) -> None:
    """Become the program."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).resolve().parent)
    status = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
