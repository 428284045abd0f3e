"""on_policy_data_gen/decode.py on a real engine: seeds, BOS, kills and restarts, shares; and finished folders."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from decode_world import DECODE, PROMPTS, SEEDS, TOO_LONG, command, contents, write_prompts
from forked import Started

import post_process
from decode import DecodeArguments, format_prompts, load_tokenizer, main
from simpo.engine.vllm import engine_settings, start_engine
from simpo.files import read_rows
from tiny_models import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> str:
    return write_prompts(tmp_path_factory.mktemp("decode"))


@pytest.fixture(scope="module")
def five_seeds(llama, prompt_file, tmp_path_factory) -> Path:
    """The folder of one run with five seeds."""
    folder = tmp_path_factory.mktemp("five") / "out"
    result = run_script(*command(llama, prompt_file, folder))
    assert result.returncode == 0, result.stderr
    return folder


def test_five_seeds_in_one_engine_are_five_runs(five_seeds, llama, prompt_file, tmp_path):
    alone = SEEDS[::4]  # the first and the last
    Started(*(command(llama, prompt_file, tmp_path / f"out_{seed}", seed)[1:] for seed in alone)).finish()
    together = contents(five_seeds)
    assert sorted(together) == sorted(f"output_{seed}.json" for seed in SEEDS)
    for seed in alone:
        assert contents(tmp_path / f"out_{seed}") == {f"output_{seed}.json": together[f"output_{seed}.json"]}
    assert len(set(together.values())) == len(SEEDS)


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


def test_prompts_have_noise_of_their_own(five_seeds):
    """The original's shared seed made a seed's responses open alike; ours differ from prompt to prompt."""
    for seed in SEEDS:
        rows = json.loads((five_seeds / f"output_{seed}.json").read_text())
        openings = [row["generated_text"][:2] for row in rows]
        assert max(map(openings.count, openings)) < len(rows) / 2


def test_too_long_prompts_are_skipped_and_listed(five_seeds):
    rows = json.loads((five_seeds / "skipped_prompts.json").read_text())
    assert [row["prompt"] for row in rows] == [TOO_LONG]
    assert rows[0]["num_tokens"] >= 512


def test_finished_run_does_nothing_again(five_seeds, llama, prompt_file, tmp_path, monkeypatch, capfd):
    folder = shutil.copytree(five_seeds, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", command(llama, prompt_file, folder, 21, 13)[1:])
    main()
    assert "engine" not in capfd.readouterr().err
    assert contents(folder) == contents(five_seeds)


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


def test_killed_at_three_random_moments(five_seeds, llama, prompt_file, tmp_path, chance):
    folder, kills, finished = tmp_path / "out", [0], 0
    while len(kills) <= 3:
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


def test_settings_that_the_engine_refuses(fails, tmp_path, llama, prompt_file):
    argv = ["--output_dir", str(tmp_path / "out"), "--data_dir", prompt_file, "--model", llama]
    assert "attention_backend: 'FLASHY'" in fails(main, *argv, "--attention_backend", "FLASHY")
    assert "max_model_len" in fails(main, *argv, "--max_model_len", "5000")
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["decode_settings.json"]


def test_no_prompt_fits(monkeypatch, tmp_path, llama, prompt_file):
    argv = ["--output_dir", str(tmp_path), "--data_dir", prompt_file, "--model", llama, "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["decode.py", *argv, "--max_model_len", "8"])
    main()
    assert json.loads((tmp_path / "output_3.json").read_text()) == []
    assert len(json.loads((tmp_path / "skipped_prompts.json").read_text())) == len(PROMPTS) + 1


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


def test_another_model_under_the_same_name(fails, five_seeds, prompt_file, tmp_path, llama):
    folder = shutil.copytree(five_seeds, tmp_path / "out")
    retrained = Path(shutil.copytree(llama, tmp_path / "llama"))
    error = fails(main, *command(str(retrained), prompt_file, folder)[2:])
    assert "model was" in error and "weights" not in error
    record = json.loads((folder / "decode_settings.json").read_text())
    (folder / "decode_settings.json").write_text(json.dumps(record | {"model": str(retrained)}))
    tiny_llama(retrained, tokenizer=tiny_tokenizer(adds_bos=True), seed=1)
    assert "weights was" in fails(main, *command(str(retrained), prompt_file, folder)[2:])
