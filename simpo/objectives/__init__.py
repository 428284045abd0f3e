"""The objectives, one file each, found by their names.

A file holds `OBJECTIVE`, an `Objective` of the file's name: a pure function of log-probabilities and a declaration of
what it needs. Nothing else has to be told about it.
"""

import difflib
from importlib import import_module
from pkgutil import iter_modules

from simpo.console import UserError
from simpo.objectives.base import Objective

SHARED = {"base", "losses"}  # files of this folder that are no objective's


def objective_names() -> list[str]:
    return sorted({module.name for module in iter_modules(__path__)} - SHARED)


def get_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    names = objective_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"objective: there is no {name!r}; {hint}({', '.join(names)})")
    return import_module(f"{__name__}.{name}").OBJECTIVE
