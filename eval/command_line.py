"""Command lines with positional words, whose mistakes are one line like all others."""

import argparse
from typing import NoReturn

from simpo.console import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse, raising UserError instead of printing its usage."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message} (--help shows what there is)")
