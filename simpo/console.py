"""What a person running a script sees: plain lines from the main process, errors without tracebacks, an exit status."""

import argparse
import atexit
import ctypes
import functools
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

FAILED, INTERRUPTED = 2, 130
LONGEST_LINE = 1000  # characters of an error
SECONDS_A_LINE = 30  # of a bar that is no bar
NAMED = 3  # of the rows left out, in a warning
GRACE = 5  # seconds in which a launcher ends the other processes of its node, when one has failed
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Whose own errors speak of what they were given to read or to reach; any other error is a fault of this program.
OUTSIDE = {
    *("_pickle", "datasets", "httpx", "huggingface_hub", "jinja2", "json", "openai", "pyarrow", "ray", "requests"),
    *("safetensors", "vllm", "yaml", "zipfile", "zlib"),
}

# How to turn off a library's progress bars: what it reads when it is loaded, and a call where it has been.
BARS = {
    "datasets": ("HF_DATASETS_DISABLE_PROGRESS_BARS", "disable_progress_bars"),
    "transformers.utils.logging": ("HF_HUB_DISABLE_PROGRESS_BARS", "disable_progress_bar"),
}

_held = ExitStack()


class UserError(Exception):
    """A mistake in what the user passed. The message names the key, file or row, and the remedy."""


class Done(Exception):
    """Nothing is left to do. The message says why; the exit status is 0."""


def is_main_process() -> bool:
    """True in the one process that talks; reads the launcher's variables, so it works before torch is up."""
    return os.environ.get("RANK", "0") == "0"


def bars_are_shown() -> bool:
    """Progress bars redraw themselves, which in a file or a pipe is noise."""
    return is_main_process() and sys.stderr.isatty()


def hide_library_bars() -> None:
    """... where bars are not shown, in this process and in those that it starts."""
    if not bars_are_shown():
        for library, (variable, function) in BARS.items():
            os.environ[variable] = "1"
            if library in sys.modules:
                getattr(sys.modules[library], function)()


def progress(total: int, desc: str, unit: str, position: int = 0, **options: Any) -> "tqdm":
    """tqdm's bar on a terminal; elsewhere a plain line at the start, at the end and every half minute."""
    from tqdm import tqdm

    options |= {"total": total, "desc": desc, "unit": unit, "smoothing": 0}
    if sys.stderr.isatty():
        return tqdm(position=position, **options)
    form = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}s in {{elapsed}}, {{remaining}} left{{postfix}}"
    return tqdm(file=WholeLines(), bar_format=form, mininterval=SECONDS_A_LINE, miniters=1, **options)


class WholeLines:
    """Standard error for tqdm: each state of the bar is a line, without control characters."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if line := text.strip().removesuffix(", ? left"):
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def say(message: str = "") -> None:
    if is_main_process():
        print(message, flush=True)


def warn(message: str) -> None:
    if is_main_process():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def first_few(problems: list[str]) -> str:
    """The first of many problems, for a warning that counts them all."""
    return "; ".join(problems[:NAMED]) + ("; ..." if len(problems) > NAMED else "")


def hold(context: AbstractContextManager[T]) -> T:
    """Enter a context that ends with the command, however that ends."""
    return _held.enter_context(context)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorator of a script's main(): how a process ends.

    - `Done`: its message, status 0.
    - `UserError`, and what disks, memory, endpoints and files do (see `explain`): one line on standard error, status 2.
    - Ctrl-C: one line, status 130.
    - Anything else is a programming error, with its traceback. SIMPO_TRACEBACK=1 shows that of the others too.

    A process that a launcher started ends when the launcher does.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        end_with_launcher()
        hide_library_bars()
        status = 0
        try:
            with quiet_interrupts(), _held:
                main()
        except Done as message:
            say(str(message))
        except (Exception, KeyboardInterrupt) as error:
            message = explain(error)
            if message is None:
                if not is_main_process():
                    time.sleep(GRACE)  # in which the launcher ends this process, if the main one has failed as well
                    error.add_note(f"(in process {os.environ['RANK']})")
                raise
            status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
            complain(message, error)
        leave(status)

    return wrapper


def explain(error: BaseException) -> str | None:
    """One line for an error that comes from outside the program; None for a programming error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C; the same command goes on with what is finished"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return f"out of memory: {error or 'give it less at a time'}{WHERE}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}{WHERE}" if error.filename else f"{error.strerror}{WHERE}"
    if lost_another(error):
        return LOST
    roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if isinstance(error, OSError | UnicodeError) or roots & OUTSIDE:
        return f"{type(error).__name__}: {error}{WHERE}"
    return None


def lost_another(error: BaseException) -> bool:
    """Whether one of several processes failed because another one is gone (gloo; torch's own errors, NCCL's too)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return False
    signs = r"gloo/transport|Connection (closed|reset|refused)|Broken pipe|remote process"
    return type(error).__name__ in {"DistNetworkError", "DistStoreError"} or bool(re.search(signs, str(error)))


LOST = "another process has ended, and this one cannot go on without it"
WHERE = " (SIMPO_TRACEBACK=1 shows where)"


def complain(message: str, error: BaseException) -> None:
    """Print an error's line, once: the main process speaks, another one only where that has not failed as well.

    A launcher ends its own node's processes only, so the first of each other node speaks for that node.
    """
    if os.environ.get("SIMPO_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    if lost_another(error):
        time.sleep(GRACE)  # the other one's line says more
    elif not is_main_process():
        time.sleep(GRACE / 2 if os.environ.get("LOCAL_RANK") == "0" else GRACE)
    if not is_main_process():
        message = f"process {os.environ['RANK']}: {message}"
    message = " ".join(message.split())
    if len(message) > LONGEST_LINE:  # a library that repeats what it was given, or adds its own stack
        message = f"{message[: LONGEST_LINE // 2]} ... {message[-LONGEST_LINE // 4 :]}"
    print(f"error: {message}", file=sys.stderr, flush=True)


def leave(status: int) -> None:
    """End the process; with status 0 a process that is alone just goes on.

    One of several leaves without the libraries' C++ destructors. On a loaded CPU three of some forty runs under ZeRO-3
    aborted there, all work done ("terminate called without an active exception"), and then the launcher ends the other
    processes and reports a failure. The cause was not found.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()  # trackers send their last values there
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        sys.exit(status)


def end_with_launcher() -> None:
    """Have the kernel end this process when the launcher that started it ends, so that nothing goes on writing unseen.

    Linux only. A process without a launcher outlives its parent, as under nohup.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in this process only, once: forked workers just end, and a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, frame: object) -> None:
        if os.getpid() != owner:
            os._exit(INTERRUPTED)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class ArgumentParser(argparse.ArgumentParser):
    """For command lines with positional words; mistakes are UserErrors, one line like all others."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message} (--help shows what there is)")


def interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C before or after `command`, such as while libraries are imported, is one line as well."""
    if issubclass(kind, KeyboardInterrupt):
        complain("stopped by Ctrl-C", error)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = interrupted
