"""on_policy_data_gen/decode.py on a real engine: seeds, BOS, kills and restarts, shares; and what it refuses."""

import csv
import gzip
import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import crashes
import pytest
import torch
from conftest import ROOT, make_pairs, run_script, write_jsonl
from crashes import stops_of
from forked import Started

import decode
import engines
import post_process
from decode import DecodeArguments, format_prompts, load_tokenizer, main
from decoded import finished_responses
from engines import engine_environments
from prompts import load_prompts
from simpo.console import UserError
from simpo.engine.team import Lost
from simpo.engine.vllm import Response, engine_settings, noise_seed, start_engine
from simpo.files import read_rows
from simpo.folder import Journal, lock_folder
from tiny_models import tiny_llama, tiny_tokenizer

DECODE = str(ROOT / "on_policy_data_gen" / "decode.py")
SEEDS = [13, 21, 42, 79, 100]
PROMPTS = [f"What is {i} plus {i % 7}?" + " Please think about it." * (i % 4) for i in range(30)]
TOO_LONG = "Why is that so? " * 100


def prompts_of(*source: object, **options: object) -> list:
    return list(load_prompts(*source, **options))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    """A model whose tokenizer adds BOS by itself, beside the one in the template."""
    return tiny_llama(tmp_path_factory.mktemp("decode") / "llama", tokenizer=tiny_tokenizer(adds_bos=True))


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> str:
    rows = [{"prompt": prompt} for prompt in [*PROMPTS, TOO_LONG]]
    random.Random(0).shuffle(rows)
    return str(write_jsonl(tmp_path_factory.mktemp("decode_data") / "prompts.jsonl", rows))


def command(llama: str, prompt_file: str, folder: Path, *seeds: int) -> list[str]:
    settings = ["--max_tokens", "160", "--max_model_len", "512", "--dtype", "float32"]
    names = ["--model", llama, "--data_dir", prompt_file, "--output_dir", str(folder)]
    return [sys.executable, DECODE, *names, *settings, "--seed", *map(str, seeds or SEEDS)]


@pytest.fixture(scope="module")
def five_seeds(llama, prompt_file, tmp_path_factory) -> Path:
    """The folder of one run with five seeds."""
    folder = tmp_path_factory.mktemp("five") / "out"
    result = run_script(*command(llama, prompt_file, folder))
    assert result.returncode == 0, result.stderr
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("output_*.json")}


# ---- on the engine ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_seeds_in_one_engine_are_five_runs(five_seeds, llama, prompt_file, tmp_path):
    Started(*(command(llama, prompt_file, tmp_path / f"out_{seed}", seed)[1:] for seed in SEEDS)).finish()
    together = contents(five_seeds)
    assert sorted(together) == sorted(f"output_{seed}.json" for seed in SEEDS)
    for seed in SEEDS:
        assert contents(tmp_path / f"out_{seed}") == {f"output_{seed}.json": together[f"output_{seed}.json"]}
    assert len(set(together.values())) == len(SEEDS)


@pytest.mark.slow
def test_output_fields_and_order(five_seeds):
    for seed in SEEDS:
        rows = json.loads((five_seeds / f"output_{seed}.json").read_text())
        assert [row["prompt"] for row in rows] == sorted(PROMPTS)
        for row in rows:
            assert list(row) == ["prompt", "format_prompt", "generated_text", "finish_reason", "num_tokens"]
            assert row["format_prompt"] == (
                f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{row['prompt']}<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            )
            assert 1 <= row["num_tokens"] <= 160
            assert row["finish_reason"] == ("length" if row["num_tokens"] == 160 else "stop")
    assert not list((five_seeds / "journal").iterdir())


@pytest.mark.slow
def test_prompts_have_noise_of_their_own(five_seeds):
    """The original's shared seed made a seed's responses open alike; ours differ from prompt to prompt."""
    for seed in SEEDS:
        rows = json.loads((five_seeds / f"output_{seed}.json").read_text())
        openings = [row["generated_text"][:2] for row in rows]
        assert max(map(openings.count, openings)) < len(rows) / 2


@pytest.mark.slow
def test_too_long_prompts_are_skipped_and_listed(five_seeds):
    rows = json.loads((five_seeds / "skipped_prompts.json").read_text())
    assert [row["prompt"] for row in rows] == [TOO_LONG]
    assert rows[0]["num_tokens"] >= 512


@pytest.mark.slow
def test_finished_run_does_nothing_again(five_seeds, llama, prompt_file, tmp_path, monkeypatch, capfd):
    folder = shutil.copytree(five_seeds, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", command(llama, prompt_file, folder, 21, 13)[1:])
    main()
    assert "engine" not in capfd.readouterr().err
    assert contents(folder) == contents(five_seeds)


@pytest.mark.slow
def test_parts_from_a_job_array_join_to_the_run_without_parts(
    five_seeds, llama, prompt_file, tmp_path, monkeypatch, warm
):
    """examples/slurm/decode.sbatch with a stand-in for srun, one task after the other."""
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    settings = {"MODEL": llama, "DATA": prompt_file, "OUT": str(tmp_path / "out"), "PARTS": "2"}
    settings["DECODE_ARGS"] = "--max_tokens 160 --max_model_len 512 --dtype float32"
    for task in ("1", "2"):
        settings |= warm | {"PATH": f"{tmp_path}:{warm['PATH']}", "SLURM_ARRAY_TASK_ID": task}
        result = run_script("bash", str(ROOT / "examples" / "slurm" / "decode.sbatch"), env=settings)
        assert result.returncode == 0, result.stderr
    parts = [str(tmp_path / "out" / f"part_{task}") for task in (1, 2)]
    whole = shutil.copytree(five_seeds, tmp_path / "whole")
    for folders, output in ((parts, tmp_path / "joined"), ([str(whole)], whole)):
        argv = ["post_process.py", "--generation_file_dir", *folders, "--output_dir", str(output)]
        monkeypatch.setattr(sys, "argv", argv)
        post_process.main()
    assert (tmp_path / "joined/all_outputs.json").read_bytes() == (whole / "all_outputs.json").read_bytes()
    assert all(len(read_rows(Path(part) / "output_13.json", "", {})) >= 5 for part in parts)


@pytest.mark.slow
def test_killed_at_five_random_moments(five_seeds, llama, prompt_file, tmp_path, chance):
    folder, kills, finished = tmp_path / "out", [0], 0
    while len(kills) <= 5:
        process = Started(command(llama, prompt_file, folder)[1:]).process
        # the first one while the engine starts, the others after some more responses
        start, delay, more = time.time(), chance.uniform(0, 4), chance.randint(1, 20)
        while process.is_alive():
            if time.time() - start >= delay if len(kills) == 1 else count_finished(folder) - kills[-1] >= more:
                break
            time.sleep(0.002)
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was done before the kill came: begin again
            finished += 1
            assert finished < 5 and contents(folder) == contents(five_seeds), kills
            shutil.rmtree(folder)
            kills[-1] = 0
            continue
        kills.append(count_finished(folder))
        assert process.exitcode == -signal.SIGKILL, kills
        assert not contents(folder)
    journal = next((folder / "journal").glob("*.jsonl"))
    with journal.open("a") as file:  # as a kill in the middle of a write leaves it
        file.write('{"prompt": "What is 3 pl')
    Started(command(llama, prompt_file, folder)[1:]).finish()
    assert contents(folder) == contents(five_seeds)


def count_finished(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "journal").glob("*.jsonl"))


@pytest.mark.slow
def test_two_engines_share_the_prompts(five_seeds, llama, prompt_file, tmp_path, warm):
    """... started from another directory, with the settings in a YAML."""
    config = {"model": llama, "max_tokens": 160, "max_model_len": 512, "dtype": "float32", "seed": 5}
    (tmp_path / "config.yaml").write_text(json.dumps(config | {"data_dir": prompt_file, "output_dir": "out"}))
    argv = ["config.yaml", "--seed=13", "--data_parallel_size", "2"]
    result = run_script("python", DECODE, *argv, cwd=tmp_path, env=warm)
    assert result.returncode == 0, result.stderr
    assert "engine 0" in result.stderr and "engine 1" in result.stderr
    assert contents(tmp_path / "out") == {"output_13.json": contents(five_seeds)["output_13.json"]}


def run_probe(llama: str, answer: Path) -> None:
    """Write the token ids that the engine has for two prompts, under a template with BOS and one without."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    prompts = ["Hello", "say <|begin_of_text|> and <|eot_id|>"]
    engine = start_engine(engine_settings(llama, "float32", 512, 1, None, False))
    for template in (None, "{% for m in messages %}[{{ m.content }}]{% endfor %}"):
        args = DecodeArguments(model=llama, chat_template=template)
        for prompt, (_, ids) in format_prompts(load_tokenizer(args), prompts)[0].items():
            engine.add_request(f"{prompt} {template}", tokens_input(ids), SamplingParams(max_tokens=1, seed=0))
    seen = []
    while engine.has_unfinished_requests():
        seen += [(output.request_id, list(output.prompt_token_ids)) for output in engine.step()]
    answer.write_text(json.dumps(sorted(seen)))


@pytest.mark.slow
def test_one_bos_reaches_the_engine(llama, tmp_path):
    process = Started.context.Process(target=run_probe, args=(llama, tmp_path / "seen.json"))
    process.start()
    process.join(120)
    seen = dict(json.loads((tmp_path / "seen.json").read_text()))
    tokenizer = tiny_tokenizer()
    assert len(seen) == 4
    for name, ids in seen.items():
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids.count(tokenizer.eos_token_id) == ("None" in name)  # the template's own; quoted ones are text
        assert ("say <|begin_of_text|> and <|eot_id|>" if name.startswith("say") else "Hello") in tokenizer.decode(ids)


# ---- without an engine --------------------------------------------------------------------------------------------


def test_noise_comes_from_seed_and_prompt():
    seeds = {noise_seed(seed, prompt) for seed in SEEDS for prompt in PROMPTS}
    assert len(seeds) == len(SEEDS) * len(PROMPTS)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(13, "a") == noise_seed(13, "a") == 6384720238580535064


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


TURNS = [
    {"role": "system", "content": "Be brief.", "weight": 1},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who are you?"},
]
ANSWER = {"role": "assistant", "content": "A model."}


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


def test_bad_settings(fails, tmp_path, llama, prompt_file):
    out = ["--output_dir", str(tmp_path / "out")]
    data = ["--data_dir", prompt_file]
    assert "seed" in fails(main, *out, *data, "--seed", "13", "13")
    assert "max_tokens" in fails(main, *out, *data, "--max_tokens", "0")
    assert "temperature" in fails(main, *out, *data, "--temperature", "-1")
    assert "temperature 0" in fails(main, *out, *data, "--temperature", "0", "--seed", "1", "2")
    assert "below 2^63" in fails(main, *out, *data, "--seed", str(2**63))
    assert "below 2^31" in fails(main, *out, *data, "--max_tokens", str(2**31))
    assert "did you mean max_tokens" in fails(main, *out, *data, "--max_token", "3")
    assert "nowhere" in fails(main, *out, *data, "--model", str(tmp_path / "nowhere"))
    assert "data_dir" in fails(main, *out, "--data_dir", str(tmp_path / "nothing_here"))
    assert "chat_template" in fails(main, *out, *data, "--model", llama, "--chat_template", "llama4")
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"prompt": "a"}\n{"prompt": "b')
    assert "line 2: not JSON" in fails(main, *out, "--data_dir", str(cut))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_settings_that_the_engine_refuses(fails, tmp_path, llama, prompt_file):
    argv = ["--output_dir", str(tmp_path / "out"), "--data_dir", prompt_file, "--model", llama]
    assert "attention_backend: 'FLASHY'" in fails(main, *argv, "--attention_backend", "FLASHY")
    assert "max_model_len" in fails(main, *argv, "--max_model_len", "5000")
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["decode_settings.json"]


@pytest.mark.slow
def test_no_prompt_fits(monkeypatch, tmp_path, llama, prompt_file):
    argv = ["--output_dir", str(tmp_path), "--data_dir", prompt_file, "--model", llama, "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["decode.py", *argv, "--max_model_len", "8"])
    main()
    assert json.loads((tmp_path / "output_3.json").read_text()) == []
    assert len(json.loads((tmp_path / "skipped_prompts.json").read_text())) == len(PROMPTS) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--temperature", "0.7"], ["temperature was 0.8, now 0.7"]),
        (["--max_tokens", "32", "--shared_seed"], ["max_tokens was 160, now 32", "shared_seed was false, now true"]),
        (["--chat_template", "zephyr"], ["chat_template was"]),
    ],
)
def test_other_settings_in_a_folder_with_output(fails, five_seeds, llama, prompt_file, change, words):
    before = contents(five_seeds)
    error = fails(main, *command(llama, prompt_file, five_seeds)[2:], *change)
    assert all(word in error for word in words), error
    assert contents(five_seeds) == before


@pytest.mark.slow
def test_another_model_under_the_same_name(fails, five_seeds, prompt_file, tmp_path, llama):
    folder = shutil.copytree(five_seeds, tmp_path / "out")
    retrained = Path(shutil.copytree(llama, tmp_path / "llama"))
    error = fails(main, *command(str(retrained), prompt_file, folder)[2:])
    assert "model was" in error and "weights" not in error
    record = json.loads((folder / "decode_settings.json").read_text())
    (folder / "decode_settings.json").write_text(json.dumps(record | {"model": str(retrained)}))
    tiny_llama(retrained, tokenizer=tiny_tokenizer(adds_bos=True), seed=1)
    assert "weights was" in fails(main, *command(str(retrained), prompt_file, folder)[2:])


def test_output_of_unknown_settings(fails, tmp_path, llama, prompt_file):
    (tmp_path / "output_13.json").write_text("[]")
    assert "without a record" in fails(main, *command(llama, prompt_file, tmp_path, 13)[2:])


def test_second_run_in_the_same_folder(fails, tmp_path, llama, prompt_file):
    with lock_folder(tmp_path):
        error = fails(main, *command(llama, prompt_file, tmp_path, 13)[2:])
    assert "another run" in error and str(tmp_path) in error
    assert not list(tmp_path.glob("*.json"))


# ---- the folder follows the data; answers come from a recorded generator ------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    """Answers without an engine: a text of the request's own, every tenth of them cut."""

    monkeypatch.setattr(decode, "engine_settings", lambda *args: {"model": "none", "tensor_parallel_size": 1})
    monkeypatch.setattr(decode, "context_length", lambda settings: 200)
    monkeypatch.setattr(engines, "Answerer", Recorded)


class Recorded:
    def __init__(self, settings):
        pass

    def start(self) -> dict:
        return {"capacity": 3}

    def work(self, items) -> list:
        return [(number, self.answer(request)) for number, request in items]

    def answer(self, request) -> Response:
        reason = "length" if request.sampling["seed"] % 10 == 0 else "stop"
        return Response(request.key, f"answer {request.sampling['seed']}", reason, len(request.token_ids))


class Fragile(Recorded):
    def work(self, items) -> list:
        if any(request.key[1] == "no" for _, request in items):
            raise Lost("its process ended")
        return super().work(items)


def answer_prompts(monkeypatch, llama: str, folder: Path, prompts: list, *seeds: int, more: tuple = ()) -> dict:
    """Run decode.py on these prompts (all runs read one file); returns the prompts of each output file."""
    path = write_jsonl(folder.parent / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    monkeypatch.setattr(sys, "argv", [*command(llama, str(path), folder, *seeds)[1:], *more])
    main()
    return {
        path.name: [row["prompt"] for row in json.loads(path.read_text())] for path in sorted(folder.glob("output_*"))
    }


def test_the_folder_follows_the_data(monkeypatch, recorded, llama, tmp_path, capsys):
    """A prompt that has left the data leaves all outputs, new ones are answered, what changed is said; and nothing is
    answered twice."""
    out = tmp_path / "out"
    assert answer_prompts(monkeypatch, llama, out, ["a", "b", "leak"], 1, 2)["output_2.json"] == ["a", "b", "leak"]
    first = contents(out)
    capsys.readouterr()
    kept = answer_prompts(monkeypatch, llama, out, ["a", "b", "c"], 1)
    assert kept == {"output_1.json": ["a", "b", "c"], "output_2.json": ["a", "b"]}
    output = capsys.readouterr()
    assert "1 prompts of earlier runs are not in the data" in output.err and "'leak'" in output.err
    assert "output_2.json lacks 1 of the prompts: add --seed 2" in output.err
    assert "3 prompts x 1 seeds: 2 responses done before" in output.out

    monkeypatch.setattr(engines, "Answerer", None)  # the earlier answers come back
    assert answer_prompts(monkeypatch, llama, out, ["a", "b", "c"], 1, more=("--limit", "1")) == {
        "output_1.json": ["a"],
        "output_2.json": ["a"],
    }
    answer_prompts(monkeypatch, llama, out, ["a", "b", "leak"], 1, 2)
    assert contents(out) == first


def test_conversations_are_answered(monkeypatch, recorded, llama, tmp_path):
    out = tmp_path / "out"
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in TURNS]
    answer_prompts(monkeypatch, llama, out, [turns, "Hi"], 1, 2)
    rows = json.loads((out / "output_1.json").read_text())
    assert [row["prompt"] for row in rows] == ["Hi", turns]
    assert rows[1]["format_prompt"].count("<|eot_id|>") == 4 and "Be brief." in rows[1]["format_prompt"]
    assert rows[0]["generated_text"] == f"answer {noise_seed(1, 'Hi')}"
    monkeypatch.setattr(engines, "Answerer", None)  # they are known again
    answer_prompts(monkeypatch, llama, out, [turns, "Hi"], 1, 2)


def test_columns_travel_with_their_prompts(monkeypatch, recorded, fails, llama, tmp_path):
    """... as the data have them now, whatever they were when the prompt was answered."""
    out = tmp_path / "out"
    for kind in ("old", "new"):
        rows = [{"prompt": p, "kind": kind, "n": n, "other": 1} for n, p in enumerate("aba")]
        path = write_jsonl(tmp_path / "prompts.jsonl", rows)
        argv = command(llama, str(path), out, 1, 2)[1:]
        monkeypatch.setattr(sys, "argv", [*argv, "--keep_columns", "kind", "n"])
        main()
    rows = json.loads((out / "output_2.json").read_text())
    assert [(row["prompt"], row["kind"], row["n"], "other" in row) for row in rows] == [
        ("a", "new", 0, False),
        ("b", "new", 1, False),
    ]
    assert "has no column 'color'" in fails(main, *argv[1:], "--keep_columns", "color")
    assert "chosen is a field" in fails(main, *argv[1:], "--keep_columns", "chosen")


def test_prompts_that_the_template_refuses(monkeypatch, recorded, fails, llama, tmp_path, capsys):
    """... are listed and left out; only --retry_failed looks at them again."""
    template = "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('never') }}{% endif %}"
    more = ("--chat_template", template + "[{{ m.content }}]{% endfor %}")
    out = tmp_path / "out"
    assert answer_prompts(monkeypatch, llama, out, ["a", "no"], 1, more=more) == {"output_1.json": ["a"]}
    (row,) = json.loads((out / "skipped_prompts.json").read_text())
    assert row["prompt"] == "no" and "never" in row["reason"]
    assert "1 prompts skipped" in capsys.readouterr().err
    monkeypatch.setattr(decode, "format_prompts", None)
    answer_prompts(monkeypatch, llama, out, ["a", "no"], 1, more=more)
    with pytest.raises(TypeError):
        answer_prompts(monkeypatch, llama, out, ["a", "no"], 1, more=(*more, "--retry_failed"))
    answer_prompts(monkeypatch, llama, out, ["a"], 1, more=more)
    assert not (out / "skipped_prompts.json").exists()


def test_a_prompt_that_engines_are_lost_over(monkeypatch, recorded, llama, tmp_path, capsys):
    """... is listed and left out; only --retry_failed tries it again."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(engines, "Answerer", Fragile)
        assert answer_prompts(patch, llama, out, ["a", "no", "b"], 1) == {"output_1.json": ["a", "b"]}
    (row,) = json.loads((out / "skipped_prompts.json").read_text())
    assert row["prompt"] == "no" and row["reason"] == decode.LOST
    assert f"1 prompts skipped: {decode.LOST}" in capsys.readouterr().err
    assert answer_prompts(monkeypatch, llama, out, ["a", "no", "b"], 1) == {"output_1.json": ["a", "b"]}
    found = answer_prompts(monkeypatch, llama, out, ["a", "no", "b"], 1, more=("--retry_failed",))
    assert found == {"output_1.json": ["a", "b", "no"]}
    assert not (out / "skipped_prompts.json").exists()


def test_a_template_that_leaves_out_the_system_message(monkeypatch, recorded, llama, tmp_path):
    more = ("--chat_template", "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}")
    out = tmp_path / "out"
    assert answer_prompts(monkeypatch, llama, out, [TURNS, "Hi"], 1, more=more) == {"output_1.json": ["Hi"]}
    (row,) = json.loads((out / "skipped_prompts.json").read_text())
    assert "leaves out a message of role 'system'" in row["reason"]


def test_a_template_that_refuses_everything(monkeypatch, recorded, fails, llama, prompt_file, tmp_path):
    argv = command(llama, prompt_file, tmp_path / "out", 1)[2:]
    assert "every prompt is refused" in fails(main, *argv, "--chat_template", "{{ raise_exception('never') }}")


def test_cut_responses_are_counted(monkeypatch, recorded, llama, tmp_path, capsys):
    prompts = [f"p{i}" for i in range(30)]
    answer_prompts(monkeypatch, llama, tmp_path / "out", prompts, 1)
    cut = sum(noise_seed(1, prompt) % 10 == 0 for prompt in prompts)
    output = capsys.readouterr()
    assert f"30 responses, {cut} cut at their longest length" in output.out
    assert f"{cut} of 30 responses" in output.err and cut > 1


def test_damaged_journal_lines_are_answered_again(monkeypatch, recorded, llama, tmp_path):
    answer_prompts(monkeypatch, llama, tmp_path / "whole", ["a", "b"], 1)
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "whole", out)
    row = json.loads((out / "output_1.json").read_text())[0]
    (out / "output_1.json").unlink()
    lines = [row | {"generated_text": 3}, row | {"prompt": None}, [1], {"prompt": "b"}]
    write_jsonl(out / "journal" / "output_1.0.jsonl", lines)
    answer_prompts(monkeypatch, llama, out, ["a", "b"], 1)
    assert contents(out) == contents(tmp_path / "whole")


def test_dry_run(monkeypatch, recorded, fails, llama, tmp_path, capsys):
    answer_prompts(monkeypatch, llama, tmp_path / "out", ["a"], 1, more=("--dry_run",))
    assert "1 prompts (dry_run" in capsys.readouterr().out and not (tmp_path / "out").exists()
    write_jsonl(tmp_path / "data" / "train_prefs.jsonl", [{"prompt": "a"}])
    argv = command(llama, str(tmp_path / "data"), tmp_path / "out", 1)[2:]
    assert "test_prefs" in fails(main, *argv, "--split", "test_prefs", "--dry_run")


@pytest.mark.parametrize("again", [False, True])
def test_kills_at_every_file_operation(monkeypatch, recorded, llama, tmp_path, again):
    """... of a first run, and of one after the data have changed: the same command then ends as if nothing had been."""
    out, asked = tmp_path / "out", []

    class Counted(Recorded):
        def answer(self, request) -> Response:
            asked.append(request.key)
            return super().answer(request)

    monkeypatch.setattr(engines, "Answerer", Counted)
    prompts = ["a", "b", TOO_LONG]
    if again:
        answer_prompts(monkeypatch, llama, out, ["b", "leak", "c"], 1, 2)
        asked.clear()
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    monkeypatch.setattr(sys, "argv", command(llama, str(path), out, 1, 2)[1:])
    stops = stops_of(main, out, tmp_path / "stops")
    files = ("*.json", "journal/*.jsonl")
    whole, once = crashes.contents(out, *files), sorted(asked)
    assert len(whole) == (6 if again else 4) and len(stops) > 10
    for stop in stops:
        stop.restore()
        kept = [seed for seed in (1, 2) for row in finished_responses(out, [seed])[seed] if row in prompts]
        asked.clear()
        main()
        assert crashes.contents(out, *files) == whole, stop
        assert len(kept) + len(asked) == 4, stop  # nothing is asked twice
    assert len(once) == (2 if again else 4)


def test_each_engine_gets_its_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    groups = [group["CUDA_VISIBLE_DEVICES"] for group in engine_environments(4, 2)]
    assert groups == ["0,1", "2,3", "4,5", "6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1,0,2,4,6")
    assert engine_environments(2, 1) == [{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with pytest.raises(UserError, match="data_parallel_size 3 x tensor_parallel_size 4 needs more than 8 GPUs"):
        engine_environments(3, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert all(set(threads) == {"OMP_NUM_THREADS"} for threads in engine_environments(2, 1))


def test_journal_survives_a_torn_line(tmp_path):
    Journal(tmp_path, "x.jsonl").append({"a": 1}, {"a": "\u00e9"})
    with (tmp_path / "journal" / "x.jsonl").open("ab") as file:
        file.write(b'{"a": "\xc3')
    assert list(Journal.read(tmp_path, "x*")) == [{"a": 1}, {"a": "\u00e9"}]
    Journal(tmp_path, "x.jsonl").append({"a": 3})
    assert list(Journal.read(tmp_path, "x*")) == [{"a": 1}, {"a": "\u00e9"}, {"a": 3}]


def test_scripts_start_fast():
    """Neither torch nor vLLM nor datasets is imported before the arguments are checked."""
    code = (
        "import sys; sys.path.insert(0, 'on_policy_data_gen'); "
        "import decode, post_process, reward_model_annotate as annotate; "
        "from simpo.config import H4ArgumentParser; "
        "H4ArgumentParser(decode.DecodeArguments).parse([]); "
        "print({'torch', 'vllm', 'datasets', 'matplotlib'} & set(sys.modules))"
    )
    result = run_script(sys.executable, "-c", code)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


def test_original_defaults():
    from post_process import PostProcessArguments
    from reward_model_annotate import AnnotateArguments

    args = DecodeArguments()
    assert (args.data_dir, args.model) == ("HuggingFaceH4/ultrafeedback_binarized", "google/gemma-2-9b-it")
    assert (args.temperature, args.top_p, args.max_tokens, args.seed) == (0.8, 0.95, 4096, [42])
    assert (args.output_dir, args.split) == ("datasets/gemma2_ultrafeedback", "train_prefs")
    assert PostProcessArguments().generation_file_dir == "datasets/gemma2_ultrafeedback"
    annotate = AnnotateArguments()
    assert annotate.generation_file == "datasets/gemma2_ultrafeedback/all_outputs.json"
    assert (annotate.reward_model, annotate.output_dir, annotate.torch_dtype) == (
        "RLHFlow/ArmoRM-Llama3-8B-v0.1",
        "datasets/gemma2_ultrafeedback/",
        "bfloat16",
    )


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
