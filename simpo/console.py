"""What a person running a script sees: plain lines from the main process, and errors without tracebacks."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user passed. The message names the key, file or row, and the remedy."""


def is_main_process() -> bool:
    """True in the one process that talks; reads the launcher's variables, so it works before torch is up."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str = "") -> None:
    if is_main_process():
        print(message, flush=True)


def warn(message: str) -> None:
    if is_main_process():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorator of a script's main(): a UserError becomes one line on standard error and exit status 2."""

    @functools.wraps(main)
    def wrapper() -> None:
        try:
            main()
        except UserError as error:
            if is_main_process():
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            sys.exit(2)

    return wrapper
