"""Loading and mixing datasets, from every kind of place, and what is refused."""

import json

import pytest
from conftest import make_pairs, write_jsonl
from datasets import Dataset, DatasetDict

from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.load import get_datasets
from simpo.data.pairs import format_pairs, tokenize_pairs
from simpo.data.tokenize import PairTokenizer


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def prompts(dataset) -> list[str]:
    return [row[0]["content"] for row in dataset["chosen"]]


def test_fractions_order_and_shuffle(folder):
    write_jsonl(folder / "a" / "train.jsonl", make_pairs(10))
    write_jsonl(folder / "b" / "train.jsonl", make_pairs(4, offset=50))
    for name in "ab":
        write_jsonl(folder / name / "test.jsonl", make_pairs(3, offset=90))
    mixed = get_datasets({str(folder / "a"): 0.55, str(folder / "b"): 1.0})
    rows = Dataset.from_list(make_pairs(5) + make_pairs(4, offset=50))  # the first int(0.55 * 10), then all of b
    assert prompts(mixed["train"]) == prompts(rows.shuffle(seed=42))
    assert len(mixed["test"]) == 6  # tests are never cut
    assert prompts(get_datasets({str(folder / "a"): 1.0}, shuffle=False)["train"]) == prompts(make_dataset(10))


def make_dataset(count: int) -> Dataset:
    return Dataset.from_list(make_pairs(count))


def test_saved_folders(folder):
    DatasetDict({"train": make_dataset(2), "test": make_dataset(1)}).save_to_disk(folder / "dict")
    make_dataset(2).save_to_disk(folder / "single")
    make_dataset(2).save_to_disk(folder / "subfolders" / "train_prefs")
    assert len(get_datasets({str(folder / "dict"): 1.0})["train"]) == 2  # fewer than three rows are no problem
    only_train = get_datasets(DataArguments(dataset_mixer={str(folder / "single"): 1.0}, dataset_splits=["train"]))
    assert list(only_train) == ["train"] and len(only_train["train"]) == 2
    assert len(get_datasets({str(folder / "subfolders"): 1.0}, splits=["train_prefs"])["train"]) == 2
    with pytest.raises(UserError, match="has no split 'test'; it has one unnamed split"):
        get_datasets({str(folder / "single"): 1.0})
    with pytest.raises(UserError, match="has no split 'test_prefs'; it has splits train, test"):
        get_datasets({str(folder / "dict"): 1.0}, splits=["train", "test_prefs"])


def good(count: int = 3) -> list[dict]:
    return make_pairs(count)


def spoiled(change) -> list[dict]:
    rows = good()
    change(rows[1])
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "rejected": "b"}] * 2, "row 0: chosen is a string"),
        ([{"prompt": "a", "rejected": [{"role": "user", "content": "x"}]}], "lacks the column chosen"),
        ([{"text": "a"}], "has no column chosen, rejected or messages"),
        (spoiled(lambda r: r.update(chosen=[])), "row 1: chosen is empty"),
        (spoiled(lambda r: r.update(rejected=None)), "row 1: rejected is empty"),
        (spoiled(lambda r: r["rejected"][1].update(content=None)), "row 1: rejected holds a message whose role"),
    ],
)
def test_bad_rows(folder, rows, message):
    write_jsonl(folder / "train.jsonl", rows)
    with pytest.raises(UserError, match=f"dataset {folder}, split train.*{message}"):
        get_datasets({str(folder): 1.0}, splits=["train"])


def test_bad_settings(folder):
    write_jsonl(folder / "train.jsonl", good())
    with pytest.raises(UserError, match="dataset_splits: 'dev' holds neither 'train' nor 'test'"):
        get_datasets({str(folder): 1.0}, ["train", "dev"])
    with pytest.raises(UserError, match="split test"):
        get_datasets({str(folder): 1.0})
    with pytest.raises(UserError, match=r"fraction of .* is 1\.5"):
        get_datasets({str(folder): 1.5})
    with pytest.raises(UserError, match=r"split train: no rows"):
        get_datasets({str(folder): 0.1}, ["train"])
    with pytest.raises(UserError, match="dataset_mixer: name at least one dataset"):
        get_datasets(DataArguments())
    with pytest.raises(UserError, match="dataset_configs: 2 names for 1 datasets"):
        get_datasets({str(folder): 1.0}, ["train"], configs=["a", "b"])
    with pytest.raises(UserError, match="neither a folder with data files nor a dataset that can be reached"):
        get_datasets({"nobody/nothing": 1.0}, ["train"])
    (folder / "train.jsonl").write_text('{"chosen": [')
    with pytest.raises(UserError, match="cannot be read"):
        get_datasets({str(folder): 1.0}, ["train"])


def test_what_is_cut_and_dropped_is_counted(tokenizer):
    rows = make_pairs(6)
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[4]["chosen"][1]["content"] = "long " * 60
    text = format_pairs(DatasetDict(train=Dataset.from_list(rows)), tokenizer, DataArguments())["train"]
    assert text.column_names == ["prompt", "chosen", "rejected"]
    tokens, report = tokenize_pairs(text, PairTokenizer(tokenizer, 128, 64), "train")
    assert (report.rows, report.dropped_identical, report.dropped_empty) == (5, 1, 0)
    assert report.response_cut == 1 and len(tokens) == 5
    assert set(tokens.column_names) == {
        "prompt_input_ids", "chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels",
    }  # fmt: skip
    with pytest.raises(UserError, match="train data: no pair is left of 1: 1 have chosen equal to rejected"):
        tokenize_pairs(text.select([2]), PairTokenizer(tokenizer, 128, 64), "train")
    with pytest.raises(UserError, match="lacks the text column prompt"):
        tokenize_pairs(text.remove_columns("prompt"), PairTokenizer(tokenizer, 128, 64), "train")


def test_two_processes_prepare_what_one_does(tokenizer):
    rows = make_pairs(2100)
    tokens = []
    for processes in (1, 2):
        data = DatasetDict(train=Dataset.from_list(rows))
        text = format_pairs(data, tokenizer, DataArguments(preprocessing_num_workers=processes))["train"]
        tokens.append(tokenize_pairs(text, PairTokenizer(tokenizer, 128, 64), "train", processes)[0])
    assert tokens[0][:] == tokens[1][:] and len(tokens[0]) == 2100
    assert not tokens[0].cache_files  # both were computed


def test_another_template_is_not_served_from_the_cache(tokenizer, folder):
    write_jsonl(folder / "train.jsonl", good())
    data = get_datasets({str(folder): 1.0}, ["train"])
    own = format_pairs(data, tokenizer, DataArguments())
    template, tokenizer.chat_template = tokenizer.chat_template, "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        other = format_pairs(data, tokenizer, DataArguments())
    finally:
        tokenizer.chat_template = template
    assert json.dumps(own["train"][0]) != json.dumps(other["train"][0])
    assert format_pairs(data, tokenizer, DataArguments(header_in_prompt=True))["train"][0] != own["train"][0]
