"""The benchmarks, one file each, found by name: `--benchmark mt-bench` is mt_bench.py, whose class is a `Benchmark`.

A file put here is a benchmark: generate_answers.py, judge.py and score.py know it without further changes.
"""

import importlib
import pkgutil

from benchmarks.base import Benchmark
from simpo.console import UserError


def names() -> list[str]:
    """All benchmarks' names."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(f"benchmark: {name!r} is none of {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return next(value for value in own if issubclass(value, Benchmark))(name)
