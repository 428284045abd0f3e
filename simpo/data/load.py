"""Datasets: load them from the hub or from disk, check their rows, mix them in the original's order."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError

from simpo.config import DataArguments
from simpo.console import UserError

COLUMNS_TO_KEEP = ["messages", "chosen", "rejected", "prompt", "completion", "label"]
SHUFFLE_SEED = 42  # the original's, whatever the run's seed


def get_datasets(
    data_config: DataArguments | Mapping[str, float],
    splits: list[str] | None = None,
    configs: list[str] | None = None,
    columns_to_keep: list[str] | None = None,
    shuffle: bool = True,
) -> DatasetDict:
    """Load and mix datasets into `train` and `test`.

    Of each dataset, in order: the first int(fraction * rows) of every split whose name holds "train", all of every
    split whose name holds "test". Both results are shuffled with seed 42.

    Args:
        data_config: the data arguments, or their `dataset_mixer`.
        splits, configs, columns_to_keep: taken from the data arguments when not given.

    Raises:
        UserError: a dataset, split or column is missing, a row is malformed, a fraction is outside [0, 1].
    """
    if isinstance(data_config, DataArguments):
        mixer = data_config.dataset_mixer
        splits = splits or data_config.dataset_splits
        configs = configs or data_config.dataset_configs
    else:
        mixer = data_config
    splits = splits or ["train", "test"]
    if not mixer:
        raise UserError("dataset_mixer: name at least one dataset, for example dataset_mixer: {HuggingFaceH4/x: 1.0}")
    if configs and len(configs) != len(mixer):
        raise UserError(f"dataset_configs: {len(configs)} names for {len(mixer)} datasets in dataset_mixer")

    parts: dict[str, list[Dataset]] = {"train": [], "test": []}
    for position, (name, fraction) in enumerate(mixer.items()):
        if not 0 <= fraction <= 1:
            raise UserError(f"dataset_mixer: the fraction of {name} is {fraction}, must be between 0 and 1")
        for split in splits:
            kind = "train" if "train" in split else "test" if "test" in split else None
            if kind is None:
                raise UserError(f"dataset_splits: {split!r} holds neither 'train' nor 'test'")
            dataset = load_split(name, configs[position] if configs else None, split)
            check_columns(dataset, f"dataset {name}, split {split}")
            keep = set(columns_to_keep or COLUMNS_TO_KEEP)
            dataset = dataset.remove_columns([c for c in dataset.column_names if c not in keep])
            if kind == "train":
                dataset = dataset.select(range(int(fraction * len(dataset))))
            if len(dataset) == 0:
                raise UserError(f"dataset {name}, split {split}: no rows")
            check_rows(dataset, f"dataset {name}, split {split}")
            parts[kind].append(dataset)
    mixed = {kind: concatenate_datasets(datasets) for kind, datasets in parts.items() if datasets}
    return DatasetDict({k: d.shuffle(seed=SHUFFLE_SEED) if shuffle else d for k, d in mixed.items()})


def load_split(name: str, config: str | None, split: str, key: str = "dataset_mixer") -> Dataset:
    """Load one split of a hub dataset, of a folder of data files, or of a folder written by `save_to_disk`.

    Args:
        key: the setting that named the dataset, for the error messages.

    Raises:
        UserError: there is no such dataset or split, or its files cannot be read.
    """
    folder = Path(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = load_from_disk(name)
        elif (folder / split / "state.json").is_file():
            return load_from_disk(str(folder / split))
        else:
            return load_dataset(name, config, split=split)
    except (DatasetNotFoundError, FileNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise UserError(
            f"{key}: {name} is neither a folder with data files nor a dataset that can be reached on the hub"
        ) from error
    except DatasetGenerationError as error:
        raise UserError(f"dataset {name}, split {split}: cannot be read: {error.__cause__ or error}") from error
    except ValueError as error:  # "Unknown split", "Config name is missing", ...
        raise UserError(f"dataset {name}, split {split}: {error}") from error
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    if split not in splits and not (isinstance(saved, Dataset) and "train" in split):
        what = f"splits {', '.join(splits)}" if isinstance(saved, DatasetDict) else "one unnamed split, read as train"
        raise UserError(f"dataset {name} has no split {split!r}; it has {what} (see dataset_splits)")
    return splits.get(split, saved)


def check_columns(dataset: Dataset, where: str) -> None:
    """Refuse a dataset without messages or with only one side of its pairs.

    Raises:
        UserError: names what is missing and what is there.
    """
    found = f"(found: {', '.join(dataset.column_names)})"
    if not {"chosen", "rejected", "messages"} & set(dataset.column_names):
        raise UserError(f"{where}: has no column chosen, rejected or messages {found}")
    if len(missing := {"chosen", "rejected"} - set(dataset.column_names)) == 1:
        raise UserError(f"{where}: lacks the column {missing.pop()} {found}")


def check_rows(dataset: Dataset, where: str) -> None:
    """Refuse columns that should hold messages and do not.

    Raises:
        UserError: names the first bad row (counted from 0 in the source's order) and column.
    """
    columns = [c for c in ("chosen", "rejected", "messages") if c in dataset.column_names]
    row = 0
    for batch in dataset.select_columns(columns).iter(batch_size=1000):
        for values in zip(*(batch[c] for c in columns), strict=True):
            for column, value in zip(columns, values, strict=True):
                if problem := message_problem(value):
                    raise UserError(
                        f"{where}, row {row}: {column} {problem}; expected a list of "
                        '{"role": ..., "content": ...} messages'
                    )
            row += 1


def message_problem(value: Any) -> str | None:
    """Say what is wrong with a value that should be a non-empty list of messages; None when it is one."""
    if isinstance(value, str):
        return "is a string"
    if not isinstance(value, Iterable) or not value:
        return "is empty"
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            return "holds something that is not a message"
        if not isinstance(message["content"], str) or not isinstance(message["role"], str):
            return "holds a message whose role or content is not text"
    return None
