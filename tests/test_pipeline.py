"""on_policy_data_gen/run_pipeline.sh from prompts to a trained model, with the commands a user types."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, losses, run_script, write_jsonl

from tiny_models import tiny_llama
from tiny_reward_models import tiny_armorm

PIPELINE = str(ROOT / "on_policy_data_gen" / "run_pipeline.sh")


def run_pipeline(cwd: Path, *words: str, **settings: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", PIPELINE, *words], cwd=cwd, env=env | settings, capture_output=True, text=True)


@pytest.mark.slow
def test_from_prompts_to_a_trained_model(tmp_path):
    """Train and test prompts, relative paths, another directory; the printed command trains on the result as it is."""
    for split, start, count in (("train_prefs", 0, 8), ("test_prefs", 100, 3)):
        rows = [{"prompt": f"What is {i} plus {i % 7}?"} for i in range(start, start + count)]
        write_jsonl(tmp_path / "prompts" / f"{split}.jsonl", rows)
    tiny_llama(tmp_path / "models" / "policy")
    settings = {
        "SEEDS": "1 2",
        "REWARD_MODEL": tiny_armorm(tmp_path / "models" / "armorm"),
        "DECODE_ARGS": "--max_tokens 24 --max_model_len 256 --dtype float32",
        "ANNOTATE_ARGS": "--torch_dtype float32",
    }
    result = run_pipeline(tmp_path, "models/policy", "prompts", "out put", **settings)
    assert result.returncode == 0, result.stderr
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
    trained = run_script(*shlex.split(printed), *here, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (folder / "simpo" / "model.safetensors").is_file()
    assert len(losses(folder / "simpo")) == 2
    assert json.loads((folder / "simpo" / "all_results.json").read_text())["eval_samples"] == 3

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out put").rglob("journal/*")}
    again = run_pipeline(tmp_path, "models/policy", "prompts", "out put", **settings)
    assert again.returncode == 0 and "16 responses done before" in again.stdout
    assert "engine" not in again.stderr and "scoring" not in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out put").rglob("journal/*")}


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
