"""DDP on two CPU processes, through the launcher, against one process; and the ends of several processes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest
import torch
from conftest import ROOT, losses
from safetensors.torch import load_file

import run_simpo
from simpo.train.checkpoints import checkpoints_in, step_of

pytestmark = pytest.mark.slow
SCRIPT = str(ROOT / "scripts" / "run_simpo.py")


def check_same_losses(one, two, tolerance: float) -> None:
    assert len(one) == len(two) > 3
    for alone, together in zip(one, two, strict=True):
        for metric in ("loss", "logps/chosen", "rewards/margins"):
            assert together[metric] == pytest.approx(alone[metric], abs=tolerance), (metric, alone["step"])
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.04)


def test_plain_processes_equal_one(config, tmp_path, monkeypatch, warm):
    """DDP in float32, in the batches that the settings say and by tokens."""
    changes = {"dataset_splits": ["train"], "gradient_accumulation_steps": 3}
    path = config(**changes, per_device_train_batch_size=4, fused_logps=False, output_dir=str(tmp_path / "one"))
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", path])
    run_simpo.main()
    runs = []
    for name, tokens in (("batches", None), ("tokens", 600)):
        path = config(**changes, output_dir=str(tmp_path / name), max_tokens_per_micro_batch=tokens)
        runs += ["run_simpo", shutil.copy(path, tmp_path / f"{name}.yaml")]
    with torchrun(str(ROOT / "tests" / "sharded_on_cpu.py"), *map(str, runs), env=warm) as process:
        _, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err[-3000:]
    one = load_file(tmp_path / "one" / "model.safetensors")
    for name in ("batches", "tokens"):
        check_same_losses(losses(tmp_path / "one"), losses(tmp_path / name), 1e-4)
        two = load_file(tmp_path / name / "model.safetensors")
        assert one.keys() == two.keys()
        for weight in one:
            torch.testing.assert_close(two[weight], one[weight], rtol=1e-4, atol=2e-5)


# ---- the ends of several processes -------------------------------------------------------------------------------


def torchrun(*command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Two plain processes, in a process group of their own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (env or {})
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(start, env=env, cwd=ROOT, **pipes)


def test_a_failure_after_training_is_a_failure(config, tmp_path, warm):
    """Everything is trained and saved when the card's place turns out to be a folder."""
    (tmp_path / "out" / "README.md").mkdir(parents=True)
    with torchrun(SCRIPT, config(max_steps=1), env=warm) as process:
        _, err = process.communicate(timeout=1800)
    assert process.returncode != 0 and (tmp_path / "out" / "model.safetensors").is_file()
    assert f"error: {tmp_path / 'out' / 'README.md'}: Is a directory; mend that" in err


def test_two_processes_end_with_their_launcher_and_hold_their_folder(config, tmp_path, warm):
    path = config(max_steps=1000, save_strategy="steps", save_steps=1, save_total_limit=1)
    with torchrun(SCRIPT, path) as process:
        while not list((tmp_path / "out").glob("checkpoint-*/digests.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        with torchrun(SCRIPT, path, env=warm) as second:
            _, err = second.communicate(timeout=1800)
        assert second.returncode != 0 and err.count("another run is writing to this folder") == 1
        assert process.poll() is None
        process.kill()  # the launcher alone
        process.communicate(timeout=1800)  # which ends when nobody holds its pipes any more
    seen = max(step_of(folder) for folder in checkpoints_in(str(tmp_path / "out")))
    with torchrun(SCRIPT, path, f"--max_steps={seen + 1}", env=warm) as process:
        out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    assert "resuming from" in out and (tmp_path / "out" / "trainer_state.json").is_file()
