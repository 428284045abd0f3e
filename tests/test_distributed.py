"""ZeRO-3 (in bf16; see test_zero3.py) and DDP on two CPU processes, through their launchers, against one process.

The runs on one process take the plain path to the log-probabilities, the others the fast one."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, losses, run_script
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import run_simpo
from simpo.train.checkpoints import checkpoints_in, step_of

pytestmark = pytest.mark.slow
SCRIPT = str(ROOT / "scripts" / "run_simpo.py")
LAUNCH = ["accelerate", "launch", "--config_file", str(ROOT / "accelerate_configs" / "deepspeed_zero3_cpu.yaml")]
ZERO3 = [*LAUNCH, SCRIPT]
ZERO3_ALONE = [*LAUNCH, "--num_processes=1", SCRIPT]


def launch(*command: str) -> str:
    result = run_script(*command)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def check_same_losses(one, two, tolerance: float) -> None:
    assert len(one) == len(two) > 3
    for alone, together in zip(one, two, strict=True):
        for metric in ("loss", "logps/chosen", "rewards/margins"):
            assert together[metric] == pytest.approx(alone[metric], abs=tolerance), (metric, alone["step"])
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.04)


# Two processes against one: the order of bf16 sums. bf16 weights against float32: 8 bits, amplified by the steps.
SAME_PRECISION, BF16 = 3e-3, 3e-2


def test_zero3_equals_one_process(config, tmp_path, model_folder):
    path = config(
        do_eval=True, eval_strategy="steps", eval_steps=2, generate_during_eval=True, use_cpu=None, learning_rate=3e-4
    )  # fmt: skip
    single = "--per_device_train_batch_size=4"
    launch(sys.executable, SCRIPT, path, f"--output_dir={tmp_path / 'float32'}", single)
    launch(*ZERO3_ALONE, path, f"--output_dir={tmp_path / 'one'}", single, "--fused_logps=false")  # the plain path
    out = launch(*ZERO3, path, f"--output_dir={tmp_path / 'two'}")
    assert "8 pairs (2 processes x 2 x 2 accumulated), 4 steps" in out
    check_same_losses(losses(tmp_path / "one"), losses(tmp_path / "two"), SAME_PRECISION)
    check_same_losses(losses(tmp_path / "float32"), losses(tmp_path / "two"), BF16)
    evaluations = [json.loads((tmp_path / run / "eval_results.json").read_text()) for run in ("one", "two")]
    for metric in ("eval_loss", "eval_logps/rejected"):  # reduced over both processes
        assert evaluations[1][metric] == pytest.approx(evaluations[0][metric], abs=4e-3)
    assert len((tmp_path / "two" / "generations.jsonl").read_text().splitlines()) == 8

    saved = load_file(tmp_path / "two" / "model.safetensors")
    start = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert saved.keys() == start.keys() == model.state_dict().keys()
    for name, weight in load_file(tmp_path / "float32" / "model.safetensors").items():
        assert saved[name].shape == weight.shape
        assert weight.dim() == 1 or not torch.equal(saved[name].float(), start[name])  # norms move below bf16
        torch.testing.assert_close(saved[name].float(), weight, rtol=0.02, atol=5e-3)


def test_plain_processes_equal_one(config, tmp_path, monkeypatch):
    """DDP in float32, in the batches that the settings say and by tokens."""
    changes = {"dataset_splits": ["train"], "gradient_accumulation_steps": 3}
    path = config(**changes, per_device_train_batch_size=4, fused_logps=False, output_dir=str(tmp_path / "one"))
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", path])
    run_simpo.main()
    runs = []
    for name, tokens in (("batches", None), ("tokens", 600)):
        path = config(**changes, output_dir=str(tmp_path / name), max_tokens_per_micro_batch=tokens)
        runs += ["run_simpo", shutil.copy(path, tmp_path / f"{name}.yaml")]
    with torchrun(str(ROOT / "tests" / "sharded_on_cpu.py"), *map(str, runs)) as process:
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    one = load_file(tmp_path / "one" / "model.safetensors")
    for name in ("batches", "tokens"):
        check_same_losses(losses(tmp_path / "one"), losses(tmp_path / name), 1e-4)
        two = load_file(tmp_path / name / "model.safetensors")
        assert one.keys() == two.keys()
        for weight in one:
            torch.testing.assert_close(two[weight], one[weight], rtol=1e-4, atol=2e-5)


def test_zero3_lora_saves_every_adapter_weight_and_resumes(config, tmp_path):
    from peft import AutoPeftModelForCausalLM

    path = config(
        use_peft=True, lora_r=4, use_cpu=None, gradient_checkpointing=True, learning_rate=1e-2, save_strategy="steps",
        save_steps=2,
    )  # fmt: skip
    launch(*ZERO3, path)
    out = tmp_path / "out"
    adapter = load_file(out / "adapter_model.safetensors")
    assert len(adapter) == 28 and all(weight.numel() > 0 and weight.abs().sum() > 0 for weight in adapter.values())
    reloaded = AutoPeftModelForCausalLM.from_pretrained(out)
    parameters = {name.replace(".default", ""): p for name, p in reloaded.named_parameters() if "lora_" in name}
    assert parameters.keys() == adapter.keys()
    for name, weight in adapter.items():
        torch.testing.assert_close(parameters[name].float(), weight.float())
    whole = losses(out)

    assert "holds this run, finished" in launch(*ZERO3, path)
    for file in (out / "digests.json", out / "trainer_state.json", out / "checkpoint-4" / "digests.json"):
        file.unlink()  # as if stopped while saving the last checkpoint
    again = launch(*ZERO3, path)
    assert f"resuming from {out / 'checkpoint-2'}" in again
    assert [entry["loss"] for entry in losses(out)] == pytest.approx([entry["loss"] for entry in whole], abs=2e-3)


def test_zero3_on_real_pairs(shared, config, tmp_path):
    path = config(
        dataset_mixer={str(shared / "pairs"): 1.0}, dataset_splits=["train"], use_cpu=None, max_length=256,
        max_prompt_length=128,
    )  # fmt: skip
    launch(sys.executable, SCRIPT, path, f"--output_dir={tmp_path / 'one'}", "--per_device_train_batch_size=4")
    launch(*ZERO3, path, f"--output_dir={tmp_path / 'two'}")
    check_same_losses(losses(tmp_path / "one"), losses(tmp_path / "two"), BF16)


# ---- the ends of several processes -------------------------------------------------------------------------------


def torchrun(*command: str, **kwargs) -> subprocess.Popen:
    """Two plain processes, in a process group of their own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(start, env=env, cwd=ROOT, **pipes, **kwargs)


def test_a_failure_after_training_is_a_failure(config, tmp_path):
    """Everything is trained and saved when the card's place turns out to be a folder."""
    (tmp_path / "out" / "README.md").mkdir(parents=True)
    with torchrun(SCRIPT, config(max_steps=1)) as process:
        _, err = process.communicate(timeout=600)
    assert process.returncode != 0 and (tmp_path / "out" / "model.safetensors").is_file()
    assert f"error: {tmp_path / 'out' / 'README.md'}: Is a directory; mend that" in err


def test_two_processes_end_with_their_launcher_and_hold_their_folder(config, tmp_path):
    path = config(max_steps=1000, save_strategy="steps", save_steps=1, save_total_limit=1)
    with torchrun(SCRIPT, path) as process:
        while not list((tmp_path / "out").glob("checkpoint-*/digests.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        with torchrun(SCRIPT, path) as second:
            _, err = second.communicate(timeout=600)
        assert second.returncode != 0 and err.count("another run is writing to this folder") == 1
        assert process.poll() is None
        process.kill()  # the launcher alone
        process.communicate(timeout=600)  # which ends when nobody holds its pipes any more
    seen = max(step_of(folder) for folder in checkpoints_in(str(tmp_path / "out")))
    with torchrun(SCRIPT, path, f"--max_steps={seen + 1}") as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "resuming from" in out and (tmp_path / "out" / "trainer_state.json").is_file()
