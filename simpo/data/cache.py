"""The files in which `datasets` keeps what it has read and mapped: checked by content before they are used again."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from datasets import Dataset
from pyarrow import ArrowInvalid

from simpo.console import warn
from simpo.files import content_digest


def from_cache(make: Callable[[bool], Dataset]) -> Dataset:
    """A dataset that is kept on the disk; made again where its files are torn.

    Args:
        make: returns the dataset. Its argument: whether it may be read from the cache.
    """
    torn: Path | None = None
    try:
        dataset = make(True)
        torn = next((file for file in files_of(dataset) if not is_whole(file)), None)
        if torn is None:
            return dataset
    except (ArrowInvalid, OSError) as error:
        if type(error) not in (ArrowInvalid, OSError):  # a dataset that is not there, not one that is torn
            raise
    warn(f"{torn or 'the cache of the datasets'} is torn: made again")
    dataset = make(False)
    for file in files_of(dataset):
        digest_of(file).unlink(missing_ok=True)
        is_whole(file)
    return dataset


def files_of(dataset: Dataset) -> list[Path]:
    return [Path(file["filename"]) for file in dataset.cache_files]


def digest_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.digest")


def is_whole(file: Path) -> bool:
    """Whether a file is what it was when it was first seen here."""
    digest = content_digest(file)
    if digest_of(file).is_file():
        return digest_of(file).read_text() == digest
    with suppress(OSError):  # a cache that others keep for us
        digest_of(file).write_text(digest)
    return True
