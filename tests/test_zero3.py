"""ZeRO-3 on two CPU processes that release every parameter between its uses, in float32, against one process.

The one process takes the plain path to the log-probabilities, in the batches that the settings say."""

import json
import shutil
import sys

import pytest
import torch
import transformers.trainer
import yaml
from conftest import ROOT, losses, run_script
from gradients import FILE, FirstGradients
from safetensors.torch import load_file

import run_preference
import run_simpo
import run_wpo
from tiny_models import tiny_model

pytestmark = pytest.mark.slow
SCRIPTS = {"run_simpo": run_simpo, "run_wpo": run_wpo, "run_preference": run_preference}
# persistence threshold: parameters below it, which here all were, are never released
ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
SIMPO, WPO = {"beta": 2.0, "gamma_beta_ratio": 0.5}, {"beta": 0.1}
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
TOKENS = {"max_tokens_per_micro_batch": 600}
RUNS = {
    "untied": ("run_simpo", SIMPO | CHECKPOINTING),
    "tied": ("run_simpo", SIMPO | CHECKPOINTING),
    "tokens": ("run_simpo", SIMPO | TOKENS),
    "copy": ("run_wpo", WPO),
    "precomputed": ("run_wpo", WPO | TOKENS | {"precompute_ref_log_probs": True}),
    "kto": ("run_preference", {"objective": "kto", "beta": 0.02}),
}
SAME = {"tokens": "untied", "precomputed": "copy"}  # whose run on one process is the same


@pytest.fixture(scope="module")
def released(tmp_path_factory, pairs_folder):
    """Folder of all runs: one/NAME on one process, two/NAME by one launch of two."""
    folder = tmp_path_factory.mktemp("zero3")
    policy = tiny_model(folder / "policy")
    tied = tiny_model(folder / "tied", tie_word_embeddings=True)
    unlikely = tiny_model(folder / "reference", seed=1, initializer_range=0.1)  # the policy is well above it

    def write(place: str, name: str, **changes) -> str:
        values = {
            "model_name_or_path": tied if name == "tied" else policy, "dataset_mixer": {pairs_folder: 1.0},
            "dataset_splits": ["train"], "learning_rate": 3e-4, "max_length": 96, "max_prompt_length": 48,
            "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "seed": 42, "output_dir": str(folder / place / name),
        } | RUNS[name][1] | changes  # fmt: skip
        if name in ("copy", "precomputed", "kto"):
            values["ref_model_name_or_path"] = unlikely
        path = folder / f"{place}-{name}.yaml"
        path.write_text(json.dumps(values))
        return str(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, FirstGradients]
        )
        for name in RUNS.keys() - SAME.keys():
            path = write("one", name, use_cpu=True, per_device_train_batch_size=4, fused_logps=False)
            patch.setattr(sys, "argv", ["script.py", path])
            SCRIPTS[RUNS[name][0]].main()
    for name, other in SAME.items():
        shutil.copytree(folder / "one" / other, folder / "one" / name)

    (folder / "zero3.json").write_text(json.dumps(ZERO3))
    shipped = yaml.safe_load((ROOT / "accelerate_configs" / "deepspeed_zero3_cpu.yaml").read_text())
    del shipped["mixed_precision"]
    shipped["deepspeed_config"] = {"deepspeed_config_file": str(folder / "zero3.json"), "zero3_init_flag": True}
    (folder / "zero3.yaml").write_text(yaml.safe_dump(shipped))
    runs = []
    for name, (script, _) in RUNS.items():
        runs += [script, write("two", name)]
    script = str(ROOT / "tests" / "sharded_on_cpu.py")
    result = run_script("accelerate", "launch", "--config_file", str(folder / "zero3.yaml"), script, *runs)
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "out.txt").write_text(result.stdout)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(released, name):
    one, two = losses(released / "one" / name), losses(released / "two" / name)
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for metric in alone.keys() - {"logits/chosen", "logits/rejected"}:
            assert together[metric] == pytest.approx(alone[metric], rel=1e-4, abs=1e-4), (metric, alone["step"])
    assert name != "kto" or min(step["kl"] for step in one) > 1
    for file, tolerance in ((FILE, 1e-6), ("model.safetensors", 1e-5)):
        alone, together = (load_file(released / place / name / file) for place in ("one", "two"))
        assert alone.keys() == together.keys() and any(weight.any() for weight in alone.values())
        for weight in alone:
            torch.testing.assert_close(together[weight], alone[weight], rtol=1e-4, atol=tolerance)
    assert f"{released / 'two' / name}: 0 weights held" in (released / "out.txt").read_text()
