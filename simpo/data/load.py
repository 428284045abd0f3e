"""Datasets: load them from the hub or from disk, bring their rows to one form, mix them in the original's order."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    DownloadMode,
    Features,
    Json,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError

from simpo.chat.rows import clean_messages, read_tools, split_pair
from simpo.config import DataArguments
from simpo.console import UserError, first_few, warn
from simpo.data.cache import from_cache
from simpo.data.mapping import map_rows

COLUMNS_TO_KEEP = ["messages", "chosen", "rejected", "prompt", "completion", "label", "system", "tools"]
SHUFFLE_SEED = 42  # the original's, whatever the run's seed
PAIR = ("prompt", "chosen", "rejected")
# One form for all datasets, so that they mix: as JSON, messages may have any keys.
FEATURES = {name: Json() for name in (*PAIR, "messages", "tools")}
FEATURES |= {name: Value("string") for name in ("system", "source", "problem")}
DATA_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt")


def get_datasets(
    data_config: DataArguments | Mapping[str, float],
    splits: list[str] | None = None,
    configs: list[str] | None = None,
    columns_to_keep: list[str] | None = None,
    shuffle: bool = True,
) -> DatasetDict:
    """Load and mix datasets into `train` and `test` (see `load_rows`), without the rows that cannot be used.

    How many these are, and the first of them, is said in a warning.

    Raises:
        UserError: a dataset, split or column is missing, no row can be used, a fraction is outside [0, 1].
    """
    datasets = load_rows(data_config, splits, configs, columns_to_keep, shuffle)
    for kind, dataset in datasets.items():
        problems = dataset["problem"]
        name_problems(f"{kind} data", problems)
        if any(problems):
            dataset = dataset.select([row for row, problem in enumerate(problems) if not problem])
        datasets[kind] = dataset.remove_columns(["source", "problem"])
    return datasets


def load_rows(
    data_config: DataArguments | Mapping[str, float],
    splits: list[str] | None = None,
    configs: list[str] | None = None,
    columns_to_keep: list[str] | None = None,
    shuffle: bool = True,
) -> DatasetDict:
    """Load and mix datasets into `train` and `test`, their rows in one form.

    Of each dataset, in order: the first int(fraction * rows) of every split whose name holds "train", all of every
    split whose name holds "test". Both results are shuffled with seed 42.

    Args:
        data_config: the data arguments, or their `dataset_mixer`.
        splits, configs, columns_to_keep: taken from the data arguments when not given.

    Returns:
        Rows of: chosen and rejected (whole conversations) and prompt (what they share), where all datasets have pairs;
        messages, where all have those; system and tools, where any has; other columns to keep, where all have them;
        source (dataset, split and row) and problem (why the row cannot be used, or null).

    Raises:
        UserError: a dataset, split or column is missing, a fraction is outside [0, 1].
    """
    num_proc = None
    if isinstance(data_config, DataArguments):
        mixer, num_proc = data_config.dataset_mixer, data_config.preprocessing_num_workers
        splits = splits or data_config.dataset_splits
        configs = configs or data_config.dataset_configs
    else:
        mixer = data_config
    splits = splits or ["train", "test"]
    if not mixer:
        raise UserError("dataset_mixer: name at least one dataset, for example dataset_mixer: {HuggingFaceH4/x: 1.0}")
    if configs and len(configs) != len(mixer):
        raise UserError(f"dataset_configs: {len(configs)} names for {len(mixer)} datasets in dataset_mixer")

    parts: dict[str, dict[str, Dataset]] = {"train": {}, "test": {}}
    for position, (name, fraction) in enumerate(mixer.items()):
        if not 0 <= fraction <= 1:
            raise UserError(f"dataset_mixer: the fraction of {name} is {fraction}, must be between 0 and 1")
        for split in splits:
            kind = "train" if "train" in split else "test" if "test" in split else None
            if kind is None:
                raise UserError(f"dataset_splits: {split!r} holds neither 'train' nor 'test'")
            where = f"dataset {name}, split {split}"
            dataset = load_split(name, configs[position] if configs else None, split)
            keep = set(columns_to_keep or COLUMNS_TO_KEEP)
            check_columns(dataset, where, keep)
            dataset = dataset.remove_columns([c for c in dataset.column_names if c not in keep])
            if kind == "train":
                dataset = dataset.select(range(int(fraction * len(dataset))))
            if len(dataset) == 0:
                raise UserError(f"{where}: no rows")
            parts[kind][where] = dataset
    mixed = {kind: mix(datasets, num_proc) for kind, datasets in parts.items() if datasets}
    return DatasetDict(
        {k: d.shuffle(seed=SHUFFLE_SEED, keep_in_memory=True) if shuffle else d for k, d in mixed.items()}
    )


def mix(datasets: Mapping[str, Dataset], num_proc: int | None) -> Dataset:
    """Concatenate datasets, named by where they come from, in one form.

    Raises:
        UserError: one has no pairs (and there are not messages instead), or the same column in another type.
    """
    common = set.intersection(*(set(dataset.column_names) for dataset in datasets.values()))
    found = set.union(*(set(dataset.column_names) for dataset in datasets.values()))
    if not common & {"chosen", "messages"}:
        other = next(where for where, dataset in datasets.items() if "chosen" not in dataset.column_names)
        raise UserError(f"{other}: has no columns chosen and rejected")
    first, *others = datasets
    kept = (common - set(PAIR)) | (found & {"system", "tools"}) | {"source", "problem"}
    kept |= set(PAIR) if "chosen" in common else set()
    columns = [name for name in dict.fromkeys([*FEATURES, *datasets[first].column_names]) if name in kept]
    features = {column: FEATURES.get(column) or datasets[first].features[column] for column in columns}
    for where in others:
        for column in features.keys() - FEATURES.keys():
            if datasets[where].features[column] != features[column]:
                raise UserError(f"{where}: its column {column} is of another type than that of {first}")
    return concatenate_datasets(
        [
            map_rows(
                dataset,
                read_batch,
                ("read_batch", where, columns),
                num_proc,
                batched=True,
                with_indices=True,
                fn_kwargs={"where": where, "columns": columns},
                features=Features(features),
                remove_columns=dataset.column_names,
                desc="Reading rows",
            )
            for where, dataset in datasets.items()
        ]
    )


def read_batch(
    batch: Mapping[str, list[Any]], positions: list[int], where: str, columns: Sequence[str]
) -> dict[str, list[Any]]:
    """Bring rows to the form of `load_rows`."""
    rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    read = [read_row(row, f"{where}, row {position}", columns) for row, position in zip(rows, positions, strict=True)]
    return {column: [row[column] for row in read] for column in columns}


def read_row(row: dict[str, Any], source: str, columns: Sequence[str]) -> dict[str, Any]:
    read: dict[str, Any] = dict.fromkeys(FEATURES) | row | {"source": source, "problem": None}
    try:
        if "chosen" in columns:
            prompt, chosen, rejected = split_pair(row)
            read |= {"prompt": prompt, "chosen": prompt + chosen, "rejected": prompt + rejected}
        if "messages" in columns:
            read["messages"] = clean_messages(row["messages"], "messages")
        if not isinstance(read["system"], str | None):
            raise UserError("system is no text")
        read["tools"] = read_tools(read["tools"])
    except UserError as error:
        read |= dict.fromkeys(FEATURES) | {"source": source, "problem": f"{source}: {error}"}
    return read


def name_problems(name: str, problems: Sequence[str | None]) -> None:
    """Say how many rows are left out, and why the first ones are.

    Raises:
        UserError: all are.
    """
    found = [problem for problem in problems if problem]
    if found and len(found) == len(problems):
        raise UserError(f"{name}: none of the {len(found)} rows can be used: {found[0]}")
    if found:
        warn(f"{name}: {len(found)} of {len(problems)} rows left out: {first_few(found)}")


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
            mode = {True: None, False: DownloadMode.FORCE_REDOWNLOAD}
            options = csv_options(folder) | named_files(folder, split)
            return from_cache(
                lambda cached: load_dataset(name, config, split=split, download_mode=mode[cached], **options)
            )
    except (DatasetNotFoundError, FileNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise UserError(
            f"{key}: {name} is neither a folder with data files nor a dataset that can be reached on the hub"
        ) from error
    except DatasetGenerationError as error:
        raise UserError(f"dataset {name}, split {split}: cannot be read: {error.__cause__ or error}") from error
    except ValueError as error:  # "Unknown split", "Config name is missing", ...
        hint = " (see dataset_splits)" if key == "dataset_mixer" else ""
        raise UserError(f"dataset {name}, split {split}: {error}{hint}") from error
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    if split not in splits and not (isinstance(saved, Dataset) and "train" in split):
        what = f"splits {', '.join(splits)}" if isinstance(saved, DatasetDict) else "one unnamed split, read as train"
        raise UserError(f"dataset {name} has no split {split!r}; it has {what} (see dataset_splits)")
    return splits.get(split, saved)


def csv_options(folder: Path) -> dict[str, Any]:
    """What `load_dataset` needs for a folder of CSV files, where "NA", "None" and "null" are texts like any other."""
    kinds = {kind for path in folder.rglob("*") for kind in DATA_FILES if kind in path.suffixes}
    return {"keep_default_na": False} if kinds == {".csv"} else {}


def named_files(folder: Path, split: str) -> dict[str, Any]:
    """What `load_dataset` needs for a folder's file that is named as a split but train and test, such as
    train_prefs.jsonl, which it would take for a part of the split train."""
    files = [path.name for path in folder.glob(f"{glob.escape(split)}.*") if set(path.suffixes) & set(DATA_FILES)]
    return {"data_files": {split: files}} if files and split not in ("train", "test") else {}


def check_columns(dataset: Dataset, where: str, keep: set[str]) -> None:
    """Refuse a dataset with none of the columns to keep that hold conversations, or with only one side of its pairs.

    Raises:
        UserError: names what is missing and what is there.
    """
    found = f"(found: {', '.join(dataset.column_names)})"
    wanted = [column for column in ("chosen", "rejected", "messages") if column in keep]
    if wanted and not set(wanted) & set(dataset.column_names):
        raise UserError(f"{where}: has no column {' or '.join(wanted)} {found}")
    if "chosen" in keep and len(missing := {"chosen", "rejected"} - set(dataset.column_names)) == 1:
        raise UserError(f"{where}: lacks the column {missing.pop()} {found}")
