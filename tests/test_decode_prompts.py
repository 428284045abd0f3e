"""The prompts of decode.py: from columns, files and conversations; bad ones."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from conftest import make_pairs, write_jsonl
from decode_world import TURNS

from decode import main
from prompts import load_prompts
from simpo.console import UserError
from simpo.files import read_rows

ANSWER = {"role": "assistant", "content": "A model."}


def prompts_of(*source: object, **options: object) -> list:
    return list(load_prompts(*source, **options))


def test_prompts_are_the_sorted_set_of_a_preference_column(tmp_path):
    rows = make_pairs(5) + make_pairs(3)
    write_jsonl(tmp_path / "data" / "train.jsonl", rows)
    prompts = prompts_of(str(tmp_path / "data"), "train", "prompt")
    assert prompts == sorted({row["prompt"] for row in rows})
    assert prompts_of(str(tmp_path / "data"), "train", "prompt", limit=2) == prompts[:2]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "strings.jsonl", "p.csv", "p.parquet"])
def test_prompts_from_a_file(tmp_path, name, packed):
    """... each once, whoever wrote it: with a byte-order mark, Windows line ends, or packed."""
    from datasets import Dataset

    path, rows = tmp_path / name, [{"prompt": p, "id": 1} for p in ("b\u2028c", "NA", "null", 'a, "b"\nc', "NA")]
    if path.suffix == ".jsonl":
        items = [row["prompt"] for row in rows] if name == "strings.jsonl" else rows
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\r\n" for item in items)
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8-sig")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "id"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        Dataset.from_list(rows).to_parquet(str(path))
    if packed:
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    path = path.with_name(name + packed)
    expected = ["NA", 'a, "b"\nc', "b\u2028c", "null"]
    assert prompts_of(str(path), "train_prefs", "prompt") == expected
    path.rename(tmp_path / f"train_prefs{Path(name).suffix}{packed}")
    assert prompts_of(str(tmp_path), "train_prefs", "prompt") == expected


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": TURNS}, "prompt"),
        ({"messages": TURNS}, "prompt"),
        ({"messages": [*TURNS, ANSWER]}, "messages"),
        ({"chosen": [*TURNS, ANSWER], "rejected": [*TURNS, ANSWER]}, "prompt"),
        ({"chosen": [*TURNS, ANSWER], "rejected": [*TURNS, ANSWER]}, "chosen"),
        ({"talk": [*TURNS, ANSWER]}, "talk"),
        ({"prompt": [TURNS[0] | {"content": [{"type": "text", "text": "Be brief."}]}, *TURNS[1:]]}, "prompt"),
    ],
)
def test_a_conversation_is_a_prompt(tmp_path, row, column):
    single = {name: [{"role": "user", "content": "Hi"}, ANSWER] for name in row}
    path = write_jsonl(tmp_path / "p.jsonl", [row, single, row])
    expected = tuple((turn["role"], turn["content"]) for turn in TURNS)
    assert prompts_of(str(path), "train", column) == ["Hi", expected]


def test_bad_prompts_are_counted_and_left_out(tmp_path, capsys):
    values = ["a", "", "  ", None, 3, ["x"], "\ud800", [{"role": "assistant", "content": "x"}], "b", "a"]
    values.append([{"role": "user", "content": [{"type": "image"}]}])
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": value} for value in values])
    assert prompts_of(str(path), "train", "prompt") == ["a", "b"]
    output = capsys.readouterr()
    assert "2 distinct prompts; 1 rows repeat one of them" in output.out
    assert "8 rows left out (row 1: prompt is empty; row 2" in output.err


def test_a_csv_row_with_too_many_fields(fails, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,id\nWell, what is it?,1\n")
    assert "row 0 has more fields" in fails(main, "--data_dir", str(tmp_path / "p.csv"), "--model", "none")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a"}], ["prompt_column", "'prompt'", "question"]),
        ([{"instruction": "a", "id": 1}], ["--prompt_column instruction"]),
        ([{"prompt": "  "}], ["row 0", "empty"]),
        ([{"prompt": []}], ["row 0", "text", "empty list"]),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], ["row 0", "no message of the user"]),
        ([{"prompt": [{"role": "user", "content": None}]}], ["row 0", "role and content"]),
        ([{"prompt": "\ud800"}], ["row 0", "Unicode"]),
        ([], ["holds no prompts"]),
    ],
)
def test_bad_prompts(fails, tmp_path, rows, words):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(rows))
    error = fails(main, "--data_dir", str(path), "--model", "none", "--output_dir", str(tmp_path / "out"))
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_rows_of_other_shapes_are_named(tmp_path):
    path = tmp_path / "x.json"
    for content, words in (
        ("{}", "list"),
        ("[1]", "row 0: must be an object"),
        ('[{"a": 1}]', "a is int, must be str"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            read_rows(path, "key", {"a": str})
