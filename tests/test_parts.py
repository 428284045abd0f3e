"""Parts of the prompts, for job arrays and rounds: decode.py's --part and --exclude; post_process.py joins them."""

import json
import random
import sys
from pathlib import Path

import pytest
from conftest import write_jsonl
from pages import Checkout, block

import decode
import post_process
from conversations import to_json
from decode import DecodeArguments, choose_prompts, settings_of
from simpo.console import UserError
from simpo.folder import check_settings

PROMPTS = [f"What is {i} plus {i % 7}?" for i in range(60)]
CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def prompts_of(path: Path, **options) -> list:
    return list(choose_prompts(DecodeArguments(data_dir=str(path), **options)))


def test_parts_are_disjoint_whole_and_do_not_depend_on_the_order(tmp_path):
    rows = [*PROMPTS, CONVERSATION]
    first = write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt} for prompt in rows])
    random.Random(0).shuffle(rows)
    other = write_jsonl(tmp_path / "b.jsonl", [{"prompt": prompt} for prompt in [*rows, "And another?"]])
    parts = [prompts_of(first, part=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(str(prompt) for part in parts for prompt in part) == sorted(map(str, prompts_of(first)))
    assert all(len(part) > 10 for part in parts)
    for number, part in enumerate(parts, start=1):
        assert [p for p in prompts_of(other, part=f"{number}/3") if p != "And another?"] == part
    assert prompts_of(first, part="1/1") == prompts_of(first)
    limited = [prompts_of(first, part=f"{i}/3", limit=20) for i in (1, 2, 3)]
    assert sorted(prompt for part in limited for prompt in part) == sorted(prompts_of(first, limit=20))


def test_excluded_prompts(tmp_path):
    data = write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt} for prompt in [*PROMPTS, CONVERSATION]])
    held = write_jsonl(tmp_path / "held.jsonl", [{"prompt": prompt} for prompt in [*PROMPTS[:7], CONVERSATION, "x"]])
    assert sorted(prompts_of(data, exclude=str(held))) == sorted(PROMPTS[7:])
    with pytest.raises(UserError, match="holds all prompts"):
        prompts_of(held, exclude=str(held))


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", "1.5/3", " 1/3", ""])
def test_no_part(fails, tmp_path, part):
    data = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}])
    error = fails(decode.main, "--data_dir", str(data), f"--part={part}", "--output_dir", str(tmp_path / "out"))
    assert "part: " in error and "2/8 is the second of eight" in error
    assert not (tmp_path / "out").exists()


def test_an_empty_part(fails, tmp_path, model_folder):
    data = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    errors = []
    for number in (1, 2, 3):
        try:
            prompts_of(data, part=f"{number}/3")
        except UserError as error:
            errors.append(str(error))
            argv = ["--model", model_folder, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
            assert fails(decode.main, *argv, f"--part={number}/3").startswith("error: part: ")
    assert errors and "of the 2 prompts holds none" in errors[0] and not (tmp_path / "out").exists()


def test_another_part_into_the_same_folder_is_refused(tmp_path):
    settings = [settings_of(DecodeArguments(part=part), "template") for part in ("1/3", "2/3", None)]
    check_settings(tmp_path / "settings.json", settings[0], has_output=False)
    check_settings(tmp_path / "settings.json", settings[0], has_output=True)
    for other in settings[1:]:
        with pytest.raises(UserError, match='part was "1/3", now'):
            check_settings(tmp_path / "settings.json", other, has_output=True)


# ---- joining ------------------------------------------------------------------------------------------------------


def part_folder(folder: Path, prompts: list, seeds: tuple[int, ...] = (1, 2), **settings) -> Path:
    """What decode.py leaves of a part."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        rows = [{"prompt": prompt, "generated_text": f"{str(prompt)[:12]} {seed}"} for prompt in prompts]
        (folder / f"output_{seed}.json").write_text(json.dumps(rows))
    if settings:
        record = {"model": "m", "temperature": 0.8, "part": None} | settings
        (folder / "decode_settings.json").write_text(json.dumps(record))
    return folder


def three_parts(tmp_path: Path) -> list[str]:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": prompt} for prompt in [*PROMPTS, CONVERSATION]])
    return [
        str(part_folder(tmp_path / f"p{i}", list(map(to_json, prompts_of(data, part=f"{i}/3"))), part=f"{i}/3"))
        for i in (1, 2, 3)
    ]


def join(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["post_process.py", "--generation_file_dir", *argv])
    post_process.main()


def test_parts_joined_are_the_run_without_parts(monkeypatch, tmp_path, fails):
    parts = three_parts(tmp_path)
    whole = part_folder(tmp_path / "whole", [*PROMPTS, CONVERSATION], part=None)
    join(monkeypatch, str(whole))
    expected = (whole / "all_outputs.json").read_bytes()
    join(monkeypatch, *parts)
    assert (Path(parts[0]) / "all_outputs.json").read_bytes() == expected
    join(monkeypatch, *parts[::-1], "--output_dir", str(tmp_path / "joined"))
    assert (tmp_path / "joined" / "all_outputs.json").read_bytes() == expected
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"generation_file_dir": parts, "output_dir": str(tmp_path / "yaml")}))
    monkeypatch.setattr(sys, "argv", ["post_process.py", str(config)])
    post_process.main()
    assert (tmp_path / "yaml" / "all_outputs.json").read_bytes() == expected
    error = fails(post_process.main, "--generation_file_dir", *parts[:2], "--output_dir", str(tmp_path / "two"))
    assert "part 3/3 is not among the folders" in error and not (tmp_path / "two").exists()
    join(monkeypatch, *parts[:2], "--output_dir", str(tmp_path / "two"), "--allow_missing")


@pytest.mark.slow
def test_the_page_on_job_arrays(tmp_path, warm):
    """Its commands, with a stand-in for sbatch that finds all jobs done."""
    checkout = Checkout(tmp_path, warm)
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    for i in range(1, 9):
        part = f"{i}/8"
        part_folder(checkout.folder / "data" / "llama3" / f"part_{i}", prompts_of(data, part=part), part=part)
    checkout.run(block("docs/scale.md", "sbatch"))
    rows = json.loads((checkout.folder / "data" / "llama3" / "all_outputs_rm.json").read_text())
    assert [row["prompt"] for row in rows] == sorted(PROMPTS) and all(len(row["all_rm_scores"]) == 2 for row in rows)


def test_a_folder_for_each_seed(monkeypatch, tmp_path):
    folders = [str(part_folder(tmp_path / f"seed{s}", PROMPTS, (s,), part=None)) for s in (13, 2, 100)]
    join(monkeypatch, *folders, "--output_dir", str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "all_outputs.json").read_text())
    assert [answer.split()[-1] for answer in rows[0]["all_generated_responses"]] == ["2", "13", "100"]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"prompts": ["a", "z"]}, ["p1/output_1.json and", "p2/output_1.json both answer 1 prompts", "'a'"]),
        ({"seeds": (1,)}, ["p1/output_2.json lacks 1 of the 3 prompts", "there is no", "p2/output_2.json"]),
        ({"seeds": (1, 3)}, ["output_2.json", "p2/output_2.json"]),
        ({"seeds": ()}, ["p2 holds no output_{seed}.json"]),
        ({"model": "other"}, ["p1 and", "p2 are no parts of one run", 'model "m" and "other"']),
        ({"temperature": 0.7}, ["temperature 0.8 and 0.7"]),
        ({"part": "2/4"}, ["split the prompts in different ways (1/2, 2/4)"]),
        ({"part": None}, ["split the prompts in different ways (1/2, all prompts)"]),
        ({"part": "1/2"}, ["part 2/2 is not among the folders"]),
    ],
)
def test_folders_that_do_not_fit_together(fails, tmp_path, second, words):
    first = part_folder(tmp_path / "p1", ["a", "b"], part="1/2")
    prompts, seeds = second.pop("prompts", ["z"]), second.pop("seeds", (1, 2))
    other = part_folder(tmp_path / "p2", prompts, seeds, **({"part": "2/2"} | second))
    error = fails(post_process.main, "--generation_file_dir", str(first), str(other))
    assert all(word in error for word in words), error
    assert not list(tmp_path.rglob("all_outputs.json"))


def test_no_folder_twice_and_none_without_a_record(fails, tmp_path):
    first = part_folder(tmp_path / "p1", ["a", "b"], part="1/2")
    other = part_folder(tmp_path / "p2", ["z"])
    assert "given twice" in fails(post_process.main, "--generation_file_dir", str(first), f"{first}/../p1")
    assert "no parts of one run" in fails(post_process.main, "--generation_file_dir", str(first), str(other))
    assert "no folder" in fails(post_process.main, "--generation_file_dir", str(first), str(tmp_path / "none"))
