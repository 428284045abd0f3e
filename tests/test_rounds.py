"""on_policy_data_gen/run_rounds.sh: rounds killed and continued."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, write_jsonl
from crashes import contents

from simpo.config.reading import read_yaml
from tiny_models import tiny_llama

ROUNDS = str(ROOT / "on_policy_data_gen" / "run_rounds.sh")
LETTERS = """
def count(prompt, responses, row):
    return [response.count("a") + len(response) / 100 for response in responses]
"""
TRAINING = """
objective: dpo
beta: 0.1
use_peft: true
lora_r: 4
learning_rate: 1e-3
max_length: 128
max_prompt_length: 64
max_steps: 3
per_device_train_batch_size: 4
save_steps: 1
report_to: none
bf16: false
"""
MADE = ("*.json", "*.jsonl", "held_out/**/*.json", "round_*/train/*.json", "round_*/annotated/*.json")
MADE += (
    "round_*/model/*.safetensors",
    "round_*/merged/*.safetensors",
    "round_*/annotated/datasets/**/data-*.arrow",  # beside the libraries' caches
    "round_*/done",
)


def start(folder: Path, settings: dict[str, str]) -> subprocess.Popen:
    environment = {
        "CONFIG": str(folder / "train.yaml"),
        "ROUNDS": "2",
        "SEEDS": "13 21",
        "REWARD": f"{folder / 'letters.py'}:count",
        "DECODE_ARGS": "--max_tokens 12 --max_model_len 256 --dtype float32",
        "ANNOTATE_ARGS": "--test_fraction 0.2",
        "TRAIN": "python",
        "REFERENCE": "start",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            ["bash", ROUNDS, str(folder / "model"), str(folder / "prompts.jsonl"), "out put"],
            cwd=folder,
            env=os.environ | environment | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(folder: Path, settings: dict[str, str]) -> None:
    status = start(folder, settings).wait(600)
    assert status == 0, (folder / "log").read_text()[-3000:]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_round_ends_with_the_same_files(tmp_path, warm, chance):
    """Two rounds of DPO with adapters against the first model; then the second round again, killed with all its
    processes when one of its files is there, and continued."""
    tiny_llama(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i} plus {i % 7}?", "key": i} for i in range(40)])
    (tmp_path / "letters.py").write_text(LETTERS)
    (tmp_path / "train.yaml").write_text(TRAINING)
    out = tmp_path / "out put"
    finish(tmp_path, warm)
    whole = contents(out, *MADE)
    held_out_prompts = {row["prompt"] for row in rows_of(out / "held_out.jsonl")}
    files = [out / "round_1/train/output_13.json", out / "round_2/train/output_1013.json"]
    prompts = [{row["prompt"] for row in json.loads(file.read_text())} for file in files]
    assert len(prompts[0] | prompts[1]) == 39 and not prompts[0] & prompts[1]
    assert not held_out_prompts & (prompts[0] | prompts[1])
    runs = [read_yaml(str(out / f"round_{n}/model/run_config.yaml")) for n in (1, 2)]
    assert [run["identity"]["model"] for run in runs] == [str(tmp_path / "model"), str(out / "round_1/merged")]
    assert {run["settings"]["ref_model_name_or_path"] for run in runs} == {str(tmp_path / "model")}
    page = (out / "report.html").read_text()
    assert "2 of 2 rounds are measured" in page and "round 2" in page

    shutil.rmtree(out / "round_2")
    shutil.rmtree(out / "held_out" / "2")
    moment = out / chance.choice([name for name in whole if name.startswith(("round_2/", "held_out/2/"))])
    process = start(tmp_path, warm)
    while not moment.exists():
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 1))
    for pid in descendants(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)
    finish(tmp_path, warm)
    again = contents(out, *MADE)
    assert again.keys() == whole.keys()
    assert [name for name in whole if whole[name] != again[name]] == []


def descendants(parent: int) -> list[int]:
    """A process and all below it."""
    found = [parent]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            number, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            found += descendants(number) if int(rest[1]) == parent else []
    return found
