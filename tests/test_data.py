"""Loading and mixing datasets, from every kind of place, and what is refused."""

import gzip
import json
import re

import pytest
from conftest import make_pairs, write_jsonl
from datasets import Dataset, DatasetDict

import run_simpo
from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data import mapping
from simpo.data.load import get_datasets, load_rows
from simpo.data.pairs import format_pairs, tokenize_pairs
from simpo.data.tokenize import PairTokenizer
from tiny_models import tiny_tokenizer

GOOD, BAD = {"role": "assistant", "content": "Good."}, {"role": "assistant", "content": "Bad."}


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


def test_files_named_as_splits(folder):
    """... beside others of the same kind, which the library would put together."""
    write_jsonl(folder / "train_prefs.jsonl", make_pairs(3))
    write_jsonl(folder / "train_sft.jsonl", make_pairs(2))
    write_jsonl(folder / "test_prefs.jsonl", make_pairs(1, offset=50))
    mixed = get_datasets({str(folder): 1.0}, splits=["train_prefs", "test_prefs"])
    assert len(mixed["train"]) == 3 and "50 plus" in prompts(mixed["test"])[0]
    assert len(get_datasets({str(folder): 1.0}, splits=["train_sft"])["train"]) == 2
    with pytest.raises(UserError, match="split train_gen"):
        get_datasets({str(folder): 1.0}, splits=["train_gen"])


def good(count: int = 3) -> list[dict]:
    return make_pairs(count)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "rejected": "b"}] * 2, "row [01]: chosen is text, and there is no prompt"),
        ([{"prompt": "a", "rejected": [{"role": "user", "content": "x"}]}], "lacks the column chosen"),
        ([{"text": "a"}], "has no column chosen or rejected or messages"),
        ([{"chosen": row["chosen"][:1], "rejected": row["rejected"]} for row in good()], "must end with an assistant"),
    ],
)
def test_data_without_a_row_to_use(folder, rows, message):
    write_jsonl(folder / "train.jsonl", rows)
    with pytest.raises(UserError, match=f"dataset {folder}, split train.*{message}"):
        get_datasets({str(folder): 1.0}, splits=["train"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(chosen=[]), "chosen is empty"),
        (lambda row: row.update(rejected=None), "rejected is empty"),
        (lambda row: row["rejected"][1].update(content=None), "rejected, message 1: its content is null"),
        (
            lambda row: row["rejected"].insert(0, {"role": "system", "content": "Lie."}),
            "not answers to the same conversation",
        ),
    ],
)
def test_a_bad_row_is_left_out_and_named(folder, tokenizer, capsys, change, message):
    rows = good(5)
    change(rows[1])
    write_jsonl(folder / "train.jsonl", rows)
    warning = f"warning: train data: 1 of 5 rows left out: dataset {folder}, split train, row 1: .*{message}"
    used = get_datasets({str(folder): 1.0}, splits=["train"])["train"]
    assert sorted(prompts(used)) == sorted(row["chosen"][0]["content"] for row in (rows[0], *rows[2:]))
    assert re.search(warning, capsys.readouterr().err)
    text = format_pairs(load_rows({str(folder): 1.0}, splits=["train"]), tokenizer, DataArguments())
    assert re.search(warning, capsys.readouterr().err)
    tokens, report = tokenize_pairs(text["train"], PairTokenizer(tokenizer, 128, 64), "train")
    assert (len(tokens), report.rows, report.dropped_malformed) == (4, 4, 1)


def test_a_row_that_the_template_refuses_is_left_out_and_named(folder, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no zero') if '0 plus' in messages[0]['content'] }}" + (
        tokenizer.chat_template
    )
    write_jsonl(folder / "train.jsonl", good())
    text = format_pairs(load_rows({str(folder): 1.0}, splits=["train"]), tokenizer, DataArguments())["train"]
    assert "split train, row 0: the chat template refuses the conversation: no zero" in capsys.readouterr().err
    assert tokenize_pairs(text, PairTokenizer(tokenizer, 128, 64), "train")[1].dropped_malformed == 1


SPELLINGS = {
    "whole": [
        {"chosen": [{"role": "user", "content": "A?"}, GOOD], "rejected": [{"role": "user", "content": "A?"}, BAD]}
    ],
    "text": [{"prompt": "B?", "chosen": "Good.", "rejected": "Bad.", "score": 1.5}],
    "answers": [{"prompt": "C?", "chosen": [GOOD], "rejected": [BAD]}],
    "messages": [{"prompt": [{"role": "user", "content": "D?"}], "chosen": [GOOD], "rejected": [BAD]}],
    "weights": [
        {
            "prompt": [{"role": "user", "content": "E?", "weight": 1.0}],
            "chosen": [GOOD | {"tool_calls": []}],
            "rejected": [BAD | {"name": "x"}],
            "tools": [{"name": "add", "parameters": {"x": 1}}],
            "system": None,
        },
        {"prompt": [{"role": "user", "content": "F?"}], "chosen": [GOOD], "rejected": [BAD], "tools": [{"name": "f"}]},
    ],
}


def test_datasets_of_every_spelling_mix(folder, tokenizer, capsys):
    for name, rows in SPELLINGS.items():
        write_jsonl(folder / name / "train.jsonl", rows)
    mixer = {str(folder / name): 1.0 for name in SPELLINGS}
    text = format_pairs(load_rows(mixer, ["train"], shuffle=False), tokenizer, DataArguments())["train"]
    question = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text["prompt"][:] == [question.format(f"{letter}?") for letter in "ABCDEF"]
    assert set(text["chosen"]) == {f"{header}Good.<|eot_id|>"} and set(text["rejected"]) == {f"{header}Bad.<|eot_id|>"}
    assert capsys.readouterr().err.endswith("the chat template has no use for the data's column tools: left out\n")


def test_datasets_that_do_not_mix_are_named(folder):
    write_jsonl(folder / "a" / "train.jsonl", good())
    write_jsonl(folder / "b" / "train.jsonl", [{"messages": row["chosen"]} for row in good()])
    with pytest.raises(UserError, match=f"dataset {folder / 'b'}, split train: has no columns chosen and rejected"):
        get_datasets({str(folder / "a"): 1.0, str(folder / "b"): 1.0}, ["train"])
    write_jsonl(folder / "c" / "train.jsonl", [row | {"label": "yes"} for row in good()])
    write_jsonl(folder / "d" / "train.jsonl", [row | {"label": 1} for row in good()])
    with pytest.raises(UserError, match=f"dataset {folder / 'd'}, split train: its column label is of another type"):
        get_datasets({str(folder / "c"): 1.0, str(folder / "d"): 1.0}, ["train"])


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_words_in_csv_files_stay_words(folder, packed):
    """pandas, which reads them, takes "NA", "None" or "null" for no value."""
    folder.mkdir()
    words = ["NA", "None", "null", "nan"]
    text = "\ufeffprompt,chosen,rejected\r\n" + "".join(f"{word},{word},no\r\n" for word in words)
    content = text.encode()
    (folder / f"train.csv{packed}").write_bytes(gzip.compress(content) if packed else content)
    rows = get_datasets({str(folder): 1.0}, ["train"], shuffle=False)["train"]
    assert [[message["content"] for message in row["chosen"]] for row in rows] == [[word, word] for word in words]


def test_messages_keep_what_the_template_may_use(folder):
    call = {"id": 7, "function": {"name": "add", "arguments": {"x": [1, None]}}}
    rows = [
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]},
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]},
    ]
    write_jsonl(folder / "train.jsonl", rows)
    assert get_datasets({str(folder): 1.0}, ["train"], shuffle=False)["train"]["messages"][:] == [
        row["messages"] for row in rows
    ]


def test_what_has_no_effect_or_disagrees_is_said(capsys):
    data = DatasetDict(train=Dataset.from_list(good()))
    tokenizer = tiny_tokenizer(template="mistral")  # which has no header
    format_pairs(data, tokenizer, DataArguments(header_in_prompt=True))
    assert "header_in_prompt: has no effect in 3 of 3 rows of the train data" in capsys.readouterr().err
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    format_pairs(data, tokenizer, DataArguments(header_in_prompt=True))
    warnings = capsys.readouterr().err
    assert "in 3 of 3 rows the answer does not go on from the prompt" in warnings and "<think>\\n" in warnings
    assert "header_in_prompt: has no effect in 3 of 3" in warnings
    format_pairs(data, tiny_tokenizer(), DataArguments(header_in_prompt=True))
    assert "warning" not in capsys.readouterr().err


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


@pytest.mark.slow
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


def test_another_version_of_the_code_is_not_served_from_the_cache(tokenizer, folder, monkeypatch):
    write_jsonl(folder / "train.jsonl", good())
    data = get_datasets({str(folder): 1.0}, ["train"])

    def prepared() -> list[str]:
        text = format_pairs(data, tokenizer, DataArguments())["train"]
        return [text._fingerprint, tokenize_pairs(text, PairTokenizer(tokenizer, 128, 64), "train")[0]._fingerprint]

    before = prepared()
    assert prepared() == before
    (folder / "chat").mkdir()
    (folder / "chat" / "template.py").write_text("changed")
    monkeypatch.setattr(mapping, "CODE", folder)
    mapping.code_version.cache_clear()
    after = prepared()
    mapping.code_version.cache_clear()
    assert not set(before) & set(after)


USERS_LAST = [{"chosen": row["chosen"][:1], "rejected": row["rejected"][:1]} for row in good()]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (USERS_LAST, {}, "split train, row [0-2]: chosen must end with an assistant message"),
        (good(), {"chat_template": "{% for m in messages %}{{ m }"}, "chat_template: line 1: "),
        (
            good(),
            {"chat_template": "{{ messages[0].text.x }}"},
            "row [0-2]: the chat template refuses the conversation",
        ),
        (good(), {"chat_template": "{{ messages[0].content }}"}, "row [0-2]: the chat template leaves out "),
        (good(), {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs: 'messages' cannot be set"),
        (good(), {"chat_template_kwargs": "thinking"}, "chat_template_kwargs: 'thinking' does not fit"),
    ],
)
def test_data_and_templates_that_cannot_work_end_the_run_at_the_start(
    folder, config, fails, tmp_path, rows, settings, message
):
    write_jsonl(folder / "train.jsonl", rows)
    path = config(dataset_mixer={str(folder): 1.0}, dataset_splits=["train"], **settings)
    assert re.search(message, fails(run_simpo.main, path))
    assert not (tmp_path / "out").exists()


def test_a_run_reports_what_it_left_out(folder, config, tmp_path, capsys, monkeypatch):
    """Text prompts, other keys in messages, and one row that is no pair."""
    spelt = [{"prompt": f"Q{i}?", "chosen": [GOOD | {"weight": 0.5}], "rejected": [BAD]} for i in range(5)]
    write_jsonl(folder / "train.jsonl", [*spelt, {"prompt": "", "chosen": [GOOD], "rejected": [BAD]}])
    path = config(dataset_mixer={str(folder): 1.0}, dataset_splits=["train"], max_steps=1)
    monkeypatch.setattr("sys.argv", ["run_simpo.py", path])
    run_simpo.main()
    printed = capsys.readouterr()
    assert "train data: 1 of 6 rows left out" in printed.err and "row 5: the prompt is empty" in printed.err
    answer = '"<|start_header_id|>assistant<|end_header_id|>\\n\\nGood.<|eot_id|>"'
    assert f'?<|eot_id|>"\n    chosen    {answer}\n' in printed.out
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"]
    assert (report["rows"], report["dropped_malformed"]) == (5, 1)
