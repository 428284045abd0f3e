"""Sources of rewards, one file each, found by their names.

A file holds `SOURCE`, a `RewardSource` of the file's name: what it scores, and how. Nothing else has to be told about
it. `--reward_model` is a model's hub name or folder, whose config.json says which source reads it, or NAME:ARGUMENT.
"""

from importlib import import_module
from pkgutil import iter_modules

from rewards.base import Options, RewardSource
from rewards.checkpoint import read_config

SHARED = {"base", "batches", "checkpoint", "decoder", "program_worker"}  # files of this folder that are no source's


def source_names() -> list[str]:
    return sorted({module.name for module in iter_modules(__path__)} - SHARED)


def get_source(name: str) -> type[RewardSource]:
    return import_module(f"{__name__}.{name}").SOURCE


def load_reward_model(name: str, options: Options | None = None) -> RewardSource:
    """The source that scores with `name`, without a model's weights (see `RewardSource.load`).

    Args:
        name: NAME:ARGUMENT, what a source recognizes, or a checkpoint.

    Raises:
        UserError: it cannot be read, or nothing here can score with it.
    """
    options = options or Options()
    kind, colon, argument = name.partition(":")
    if colon and kind in source_names():
        return get_source(kind)(argument, options)
    sources = [get_source(known) for known in source_names()]
    source = next((source for source in sources if source.recognizes(name)), None)
    if source is None:
        config = read_config(name)
        source = next((source for source in sources if source.reads(config)), get_source("classifier"))
    return source(name, options)
