"""ZeRO-3 on two CPU processes that release every parameter between its uses, against one process in float32.

The one process takes the plain path to the log-probabilities, in the batches that the settings say. All runs of the two
are one launch; another one resumes."""

import json
import shutil
import sys

import pytest
import torch
import transformers.trainer
import yaml
from conftest import ROOT, SHARED, losses, run_script
from gradients import FILE, FirstGradients
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

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
EVALUATION = {"dataset_splits": ["train", "test"], "do_eval": True, "eval_strategy": "steps", "eval_steps": 2}
EVALUATION |= {"generate_during_eval": True}
LORA = {"use_peft": True, "lora_r": 4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
LONGER = {"max_length": 256, "max_prompt_length": 128}
RUNS = {
    "untied": ("run_simpo", SIMPO | CHECKPOINTING),
    "tied": ("run_simpo", SIMPO | CHECKPOINTING),
    "tokens": ("run_simpo", SIMPO | TOKENS),
    "copy": ("run_wpo", WPO),
    "precomputed": ("run_wpo", WPO | TOKENS | {"precompute_ref_log_probs": True}),
    "kto": ("run_preference", {"objective": "kto", "beta": 0.02}),
    "evaluated": ("run_simpo", SIMPO | EVALUATION),
}
if SHARED.is_dir():
    RUNS["real"] = ("run_simpo", SIMPO | {"dataset_mixer": {str(SHARED / "pairs"): 1.0}} | LONGER)
# bf16 in the weights themselves, where one process has float32: 8 bits, amplified by the steps
IN_BF16 = {
    "bf16": ("run_simpo", SIMPO | EVALUATION | {"bf16": True}),
    "lora": ("run_simpo", SIMPO | CHECKPOINTING | LORA | {"bf16": True}),
}
SAME = {"tokens": "untied", "precomputed": "copy", "bf16": "evaluated"}  # whose run on one process is the same


@pytest.fixture(scope="module")
def released(tmp_path_factory, pairs_folder, warm):
    """Folder of all runs: one/NAME on one process, two/NAME by one launch of two."""
    folder = tmp_path_factory.mktemp("zero3")
    policy = tiny_model(folder / "policy")
    tied = tiny_model(folder / "tied", tie_word_embeddings=True)
    unlikely = tiny_model(folder / "reference", seed=1, initializer_range=0.1)  # the policy is well above it
    runs = RUNS | IN_BF16

    def write(place: str, name: str, **changes) -> str:
        values = {
            "model_name_or_path": tied if name == "tied" else policy, "dataset_mixer": {pairs_folder: 1.0},
            "dataset_splits": ["train"], "learning_rate": 3e-4, "max_length": 96, "max_prompt_length": 48,
            "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "seed": 42, "output_dir": str(folder / place / name),
        } | runs[name][1] | changes  # fmt: skip
        if name in ("copy", "precomputed", "kto"):
            values["ref_model_name_or_path"] = unlikely
        path = folder / f"{place}-{name}.yaml"
        path.write_text(json.dumps(values))
        return str(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, FirstGradients]
        )
        for name in runs.keys() - SAME.keys():
            path = write("one", name, use_cpu=True, per_device_train_batch_size=4, fused_logps=False, bf16=False)
            patch.setattr(sys, "argv", ["script.py", path])
            SCRIPTS[runs[name][0]].main()
    for name, other in SAME.items():
        shutil.copytree(folder / "one" / other, folder / "one" / name)

    (folder / "zero3.json").write_text(json.dumps(ZERO3))
    shipped = yaml.safe_load((ROOT / "accelerate_configs" / "deepspeed_zero3_cpu.yaml").read_text())
    del shipped["mixed_precision"]
    shipped["deepspeed_config"] = {"deepspeed_config_file": str(folder / "zero3.json"), "zero3_init_flag": True}
    (folder / "zero3.yaml").write_text(yaml.safe_dump(shipped))
    launch(folder, warm, *((script, write("two", name)) for name, (script, _) in runs.items()))
    return folder


def launch(folder, environment: dict[str, str], *runs: tuple[str, str]) -> str:
    """Runs (script, configuration) one after the other on two processes; their output, which out.txt keeps, too."""
    command = [
        "accelerate",
        "launch",
        "--config_file",
        str(folder / "zero3.yaml"),
        str(ROOT / "tests/sharded_on_cpu.py"),
    ]
    result = run_script(*command, *(word for run in runs for word in run), env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    with (folder / "out.txt").open("a") as file:
        file.write(result.stdout)
    return result.stdout


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(released, name):
    one, two = losses(released / "one" / name), losses(released / "two" / name)
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        assert alone.keys() == together.keys()
        for metric in alone.keys() - {"logits/chosen", "logits/rejected"}:
            assert together[metric] == pytest.approx(alone[metric], rel=1e-4, abs=1e-4), (metric, alone["step"])
    assert name != "kto" or min(step["kl"] for step in one) > 1
    moved = 5e-5 if name == "real" else 1e-5  # Adam's first steps do not care how small a gradient is
    for file, tolerance in ((FILE, 1e-6), ("model.safetensors", moved)):
        alone, together = (load_file(released / place / name / file) for place in ("one", "two"))
        assert alone.keys() == together.keys() and any(weight.any() for weight in alone.values())
        for weight in alone:
            torch.testing.assert_close(together[weight], alone[weight], rtol=1e-4, atol=tolerance)
    out = (released / "out.txt").read_text()
    assert f"{released / 'two' / name}: 0 weights held" in out
    assert "12 pairs (2 processes x 2 x 3 accumulated), 4 steps" in out


@pytest.mark.parametrize(("name", "tolerance"), [("evaluated", 1e-4), ("bf16", 3e-2)])
def test_evaluation_is_reduced_over_processes(released, name, tolerance):
    one, two = (json.loads((released / place / name / "eval_results.json").read_text()) for place in ("one", "two"))
    for metric in ("eval_loss", "eval_logps/rejected", "eval_rewards/margins"):
        assert two[metric] == pytest.approx(one[metric], abs=tolerance)
    answers = [(released / place / name / "generations.jsonl").read_text() for place in ("one", "two")]
    assert answers[0].count("\n") == answers[1].count("\n") == 8 and (name == "bf16" or answers[0] == answers[1])


@pytest.mark.parametrize("name", IN_BF16)
def test_two_processes_in_bf16_equal_one_in_float32(released, name):
    one, two = losses(released / "one" / name), losses(released / "two" / name)
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        for metric in ("loss", "logps/chosen", "rewards/margins"):
            assert together[metric] == pytest.approx(alone[metric], abs=3e-2), (metric, alone["step"])
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.04)


def test_the_model_saved_in_bf16_is_whole(released):
    saved = load_file(released / "two" / "bf16" / "model.safetensors")
    start = AutoModelForCausalLM.from_pretrained(released / "policy").state_dict()
    model, report = AutoModelForCausalLM.from_pretrained(released / "two" / "bf16", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert saved.keys() == start.keys() == model.state_dict().keys()
    for name, weight in load_file(released / "one" / "bf16" / "model.safetensors").items():
        assert saved[name].shape == weight.shape
        assert weight.dim() == 1 or not torch.equal(saved[name].float(), start[name])  # norms move below bf16
        torch.testing.assert_close(saved[name].float(), weight, rtol=0.02, atol=5e-3)


def test_every_adapter_weight_is_saved_and_a_stopped_run_resumes(released, warm):
    out = released / "two" / "lora"
    adapter = load_file(out / "adapter_model.safetensors")
    assert len(adapter) == 28 and all(weight.numel() > 0 and weight.abs().sum() > 0 for weight in adapter.values())
    reloaded = AutoPeftModelForCausalLM.from_pretrained(out)
    parameters = {name.replace(".default", ""): p for name, p in reloaded.named_parameters() if "lora_" in name}
    assert parameters.keys() == adapter.keys()
    for name, weight in adapter.items():
        torch.testing.assert_close(parameters[name].float(), weight.float())
    whole = losses(out)

    for file in (out / "digests.json", out / "trainer_state.json", out / "checkpoint-4" / "digests.json"):
        file.unlink()  # as if stopped while saving the last checkpoint
    runs = [("run_simpo", str(released / f"two-{name}.yaml")) for name in ("lora", "untied")]
    said = launch(released, warm, *runs)
    assert f"resuming from {out / 'checkpoint-2'}" in said
    assert f"{released / 'two' / 'untied'} holds this run, finished" in said
    assert [entry["loss"] for entry in losses(out)] == pytest.approx([entry["loss"] for entry in whole], abs=2e-3)
