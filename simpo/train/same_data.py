"""Whether all processes train on the same rows: each takes its share of what must be one data set."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash
from accelerate.utils import gather_object
from datasets import Dataset

from simpo.console import UserError

BATCH = 1000  # rows


def check_same_rows(dataset: Dataset | None, processes: int) -> None:
    """Compare the training rows of all processes, which all call this.

    Raises:
        UserError: they differ; in every process.
    """
    if processes == 1:
        return
    digests = gather_object([None if dataset is None else digest_of_rows(dataset)])
    other = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise UserError(
            f"dataset_mixer: process {', '.join(other)} has other training rows than process 0; all nodes need the "
            "same files, tokenizer and chat template"
        )


def digest_of_rows(dataset: Dataset) -> str:
    """A digest of the values in their order, wherever they come from and however they lie in memory."""
    digest = xxhash.xxh3_128()
    for rows in dataset.with_format("arrow").iter(BATCH):
        for name in sorted(rows.column_names):
            digest.update(name.encode())
            for buffer in values_of(rows[name].combine_chunks()):
                digest.update(buffer)
    return digest.hexdigest()


def values_of(array: pa.Array) -> Iterator[bytes | np.ndarray]:
    """What tells a column from others: of lists their lengths and their elements, of anything else its values."""
    if isinstance(array, pa.ListArray | pa.LargeListArray):
        yield from values_of(array.value_lengths())
        yield from values_of(array.flatten())
    elif pa.types.is_primitive(array.type) and not array.null_count and not pa.types.is_boolean(array.type):
        yield np.ascontiguousarray(array.to_numpy())
    else:
        yield repr(array.to_pylist()).encode(errors="surrogatepass")
