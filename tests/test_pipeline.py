"""on_policy_data_gen/run_pipeline.sh from prompts to a trained model, with the commands a user types."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, losses, run_script, write_jsonl
from judge_server import KEY, serving

import run_wpo
from tiny_models import tiny_llama
from tiny_reward_models import tiny_armorm

PIPELINE = str(ROOT / "on_policy_data_gen" / "run_pipeline.sh")


HYBRID = str(ROOT / "on_policy_data_gen" / "run_hybrid.sh")


def run_pipeline(cwd: Path, *words: str, script: str = PIPELINE, **settings: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", script, *words], cwd=cwd, env=env | settings, capture_output=True, text=True)


DECODED = {"SEEDS": "1 2", "DECODE_ARGS": "--max_tokens 24 --max_model_len 256 --dtype float32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, warm) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder in which the pipeline went through, and what it said."""
    folder = tmp_path_factory.mktemp("pipeline")
    for split, start, count in (("train_prefs", 0, 8), ("test_prefs", 100, 3)):
        rows = [
            {"prompt": f"What is {i} plus {i % 7}?", "chosen": f"It is {i + i % 7}.", "rejected": "Who knows?"}
            for i in range(start, start + count)
        ]
        write_jsonl(folder / "prompts" / f"{split}.jsonl", rows)
    tiny_llama(folder / "models" / "policy")
    settings = {"REWARD_MODEL": tiny_armorm(folder / "models" / "armorm"), "ANNOTATE_ARGS": "--torch_dtype float32"}
    result = run_pipeline(folder, "models/policy", "prompts", "out put", **settings, **DECODED, **warm)
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.mark.slow
def test_from_prompts_to_a_trained_model(made, warm):
    """Train and test prompts, relative paths, another directory; the printed command trains on the result as it is."""
    tmp_path, result = made
    folder = tmp_path / "out put" / "annotated"
    assert len(json.loads((folder / "all_outputs_bin.json").read_text())) == 8
    assert len(json.loads((folder / "all_outputs_bin_test.json").read_text())) == 3

    printed = result.stdout.strip().splitlines()[-1]
    here = [
        "--max_steps=2",
        "--logging_steps=1",
        "--report_to=none",
        "--gradient_accumulation_steps=1",
        "--preprocessing_num_workers=1",
    ]
    trained = run_script(*shlex.split(printed), *here, cwd=tmp_path, env=warm)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (folder / "simpo" / "model.safetensors").is_file()
    assert len(losses(folder / "simpo")) == 2
    assert json.loads((folder / "simpo" / "all_results.json").read_text())["eval_samples"] == 3


@pytest.mark.slow
def test_hybrid_data_of_wpo(made, monkeypatch, warm):
    """The model's answers (of an earlier run: none is decoded again) and the data's, rated by a judge; pairs by wpo_v2;
    the printed command trains with WPO."""
    folder, _ = made
    for split in ("train", "test"):
        shutil.copytree(folder / "out put" / split, folder / "hybrid" / split)

    def reply(messages):
        answer = messages[0]["content"].split("<answer>\n")[1].split("\n</answer>")[0]
        return f"Rating: [[{10 if answer.startswith('It is') else 4 if answer == 'Who knows?' else 3}]]", []

    words = ("models/policy", "prompts", "hybrid")
    with serving(reply) as server:
        settings = DECODED | {"JUDGE": "tiny-judge", "BASE_URL": server.url, "OPENAI_API_KEY": KEY} | warm
        result = run_pipeline(folder, *words, script=HYBRID, **settings)
        assert result.returncode == 0, result.stderr
        assert "16 responses done before" in result.stdout and "engine" not in result.stderr
        asked = len(server.served)
    for name, count in (("bin", 8), ("bin_test", 3)):
        pairs = json.loads((folder / "hybrid" / "annotated" / f"all_outputs_{name}.json").read_text())
        assert len(pairs) == count
        for pair in pairs:
            own, scores = pair["all_generated_responses"][:2], pair["all_rm_scores"]
            assert pair["all_generated_responses"][2:] == [pair["chosen"][-1]["content"], "Who knows?"]
            lowest = [answer for answer, score in zip(own, scores, strict=False) if score == 3]
            assert scores[2:] == [10, 4] and pair["rejected"][-1]["content"] in lowest
    assert asked <= 1 + 11 * 4 and "22 extra responses added" in result.stdout
    printed = shlex.split(result.stdout.strip().splitlines()[-1])
    assert printed[2].endswith("run_wpo.py") and printed[3].endswith("llama3_instruct.yaml")
    here = ["--max_steps=2", "--logging_steps=1", "--gradient_accumulation_steps=1", "--preprocessing_num_workers=1"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [*printed[2:], *here, "--use_cpu=true", "--bf16=false"])
    run_wpo.main()
    assert len(losses(folder / "hybrid" / "annotated" / "wpo")) == 2


def test_hybrid_data_needs_a_judge(tmp_path):
    result = run_pipeline(tmp_path, "model", "prompts.jsonl", "out", script=HYBRID)
    assert result.returncode == 2 and result.stderr.startswith("usage: JUDGE=NAME")
    result = run_pipeline(tmp_path, "model", "p", "out", script=HYBRID, JUDGE="j", OPENAI_API_KEY="")
    assert result.returncode == 2 and "OPENAI_API_KEY is not set" in result.stderr


def test_wrong_use(tmp_path):
    result = run_pipeline(tmp_path, "only_a_model")
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


def test_stops_at_the_first_error(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"question": "a"}\n')
    result = run_pipeline(tmp_path, "model", "prompts.jsonl", "out")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and "prompt_column" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_test_split_is_found_before_anything_is_decoded(tmp_path):
    write_jsonl(tmp_path / "prompts" / "train_prefs.jsonl", [{"prompt": "a"}])
    result = run_pipeline(tmp_path, "model", "prompts", "out")
    assert result.returncode == 2 and "test_prefs" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_a_signal_ends_what_is_running(tmp_path):
    """... although it goes to the script alone."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    (tmp_path / "python").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/started\nexec sleep 600\n")
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", PIPELINE, "model", "prompts.jsonl", "out"], cwd=tmp_path, env=env)
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not Path(f"/proc/{(tmp_path / 'started').read_text().strip()}").exists()
