"""FSDP2 on two CPU processes that really shard, with the shipped configuration, against one process.

The one process takes the plain path to the log-probabilities and a second copy of the reference, never sharded. FSDP1
cannot be tried without an accelerator: torch refuses a CPU for it (`torch.distributed.fsdp._init_utils`), whether it is
named (_get_compute_device: "cpu vs cpu:0") or not (_init_device_handle: "needs a non-CPU accelerator device")."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from conftest import ROOT, losses, run_script
from safetensors.torch import load_file

import run_simpo
import run_wpo
from tiny_models import tiny_model

pytestmark = pytest.mark.slow
WPO = {"beta": 0.1, "gamma_beta_ratio": None}
RUNS = {
    "simpo": ("run_simpo", {}),
    "copy": ("run_wpo", WPO),
    "precomputed": ("run_wpo", WPO | {"precompute_ref_log_probs": True}),
    "tokens": ("run_simpo", {"max_tokens_per_micro_batch": 600}),
    "lora": ("run_wpo", WPO | {"use_peft": True, "lora_r": 4, "learning_rate": 2e-3}),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, pairs_folder, warm):
    """Folder of all runs: one/NAME on one process, two/NAME by one launch of two."""
    folder = tmp_path_factory.mktemp("fsdp")
    policy, reference = (tiny_model(folder / name, seed=seed) for seed, name in enumerate(("policy", "reference")))

    def write(place: str, name: str, **changes) -> str:
        values = {
            "model_name_or_path": policy, "dataset_mixer": {pairs_folder: 1.0}, "dataset_splits": ["train"],
            "bf16": True, "beta": 2.0, "gamma_beta_ratio": 0.5, "learning_rate": 3e-4, "max_length": 96,
            "max_prompt_length": 48, "max_steps": 4, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "seed": 42, "output_dir": str(folder / place / name),
        } | RUNS[name][1] | changes  # fmt: skip
        if name in ("copy", "precomputed"):
            values["ref_model_name_or_path"] = reference
        path = folder / f"{place}-{name}.yaml"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return str(path)

    with pytest.MonkeyPatch.context() as patch:
        for name, script in (("simpo", run_simpo), ("copy", run_wpo), ("lora", run_wpo)):
            path = write("one", name, use_cpu=True, per_device_train_batch_size=4, fused_logps=False)
            patch.setattr(sys, "argv", ["script.py", path])
            script.main()
    shutil.copytree(folder / "one" / "copy", folder / "one" / "precomputed")
    shutil.copytree(folder / "one" / "simpo", folder / "one" / "tokens")

    shipped = yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text())
    (folder / "fsdp2.yaml").write_text(yaml.safe_dump(shipped | {"use_cpu": True, "num_processes": 2}))
    runs = []
    for name, (script, _) in RUNS.items():
        runs += [script, write("two", name, fused_logps=True, shared_prompt=True)]
    script = str(ROOT / "tests" / "sharded_on_cpu.py")
    result = run_script("accelerate", "launch", "--config_file", str(folder / "fsdp2.yaml"), script, *runs, env=warm)
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "out.txt").write_text(result.stdout)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(sharded, name):
    one, two = losses(sharded / "one" / name), losses(sharded / "two" / name)
    assert len(one) == len(two) == 4
    # per token, or of a whole response; bfloat16 rounds those to 1 or 2
    nats = 0.01 if name in ("simpo", "tokens") else 0.15
    for alone, together in zip(one, two, strict=True):
        for metric, tolerance in (
            ("loss", 5e-3), ("logps/chosen", nats), ("logps/rejected", nats),
            ("rewards/chosen", 0.02), ("rewards/rejected", 0.02),
        ):  # fmt: skip
            assert together[metric] == pytest.approx(alone[metric], abs=tolerance), (metric, alone["step"])
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.04)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    alone, together = load_file(sharded / "one" / name / file), load_file(sharded / "two" / name / file)
    assert alone.keys() == together.keys()
    held = re.search(rf"{sharded / 'two' / name}: (\d+) weights held", (sharded / "out.txt").read_text())
    assert name == "lora" or int(held[1]) < 0.6 * sum(weight.numel() for weight in alone.values())
    for weight in alone:
        torch.testing.assert_close(together[weight].float(), alone[weight].float(), rtol=0.02, atol=5e-3)
