"""Settings that cannot work end in one line before data and weights are loaded; settings without effect are named."""

import dataclasses
import json
import random
import re
import sys
from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, LlamaForCausalLM, MixtralConfig

import simpo.train.run
from run_simpo import main as run_simpo
from run_wpo import main as run_wpo
from simpo.config import DataArguments, ModelArguments
from simpo.console import UserError
from simpo.train.model import get_peft_config
from simpo.train.model_on_paper import check_adapters, check_resumed_adapters, model_on_paper
from simpo.train.weights import position_limit
from simpo_config import SimPOConfig

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    """What is refused here is refused before anything is loaded."""
    monkeypatch.setattr(simpo.train.run, "load_rows", lambda *_, **__: pytest.fail("the data was loaded"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adamw_8bit"}, "optim: adamw_8bit: .*bitsandbytes"),
        ({"optim": "galore_adamw", "optim_target_modules": "attn"}, "optim: galore_adamw: .*galore_torch"),
        ({"adam_beta1": 1.5}, r"adam_beta1 \(1.5\) must be"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type: cosine_with_min_lr: .*min_lr"),
        ({"lr_scheduler_kwargs": {"cycles": 2}, "lr_scheduler_type": "cosine"}, "lr_scheduler_kwargs .*cycles"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau requires an eval strategy"),
        ({"report_to": "wandb,nonesuch"}, "report_to: .* is not installed"),
        ({"metric_for_best_model": "acuracies", "eval_strategy": "steps"}, "the nearest is rewards/accuracies"),
        ({"load_best_model_at_end": True}, "need an eval_strategy"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "steps"}, "requires the save and"),
        ({"save_strategy": "best", "eval_strategy": "steps"}, "metric_for_best_model"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
            | {"dataset_splits": ["train"]},
            "dataset_splits names no test split",
        ),
        ({"use_liger_kernel": True}, "liger"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"reentrant": False}},
            "gradient_checkpointing_kwargs: .*reentrant",
        ),
        ({"torch_compile_backend": "inducter"}, "torch_compile_backend: .*INDUCTER"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers"),
        ({"accelerator_config": "/dev/null"}, "accelerator_config: "),
        ({"model_name_or_path": "n" * 5000}, "model_name_or_path: .* too long"),
        ({"report_to": "n" * 5000}, "report_to: .* is not installed"),
        ({"lora_r": 10**30, "use_peft": True}, "lora_r"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor"),
        ({"fsdp": "full_shard"}, "fsdp shards a model over several processes"),
        ({"deepspeed": "nowhere.json"}, "nowhere.json"),
        ({"tf32": True}, "tf32"),
        ({"per_device_train_batch_size": 0}, r"per_device_train_batch_size \(0\) must be at least 1"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps"),
        ({"preprocessing_num_workers": 0}, "preprocessing_num_workers"),
        ({"learning_rate": -1e-6}, "learning_rate"),
        ({"seed": 2**40}, "seed must be at most"),
        ({"eval_strategy": "steps", "eval_steps": -1}, "eval_steps"),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps"),
        ({"max_steps": None, "num_train_epochs": 0}, "num_train_epochs"),
        ({"beta": 0}, "beta"),
        ({"label_pad_token_id": 5}, "label_pad_token_id"),
        ({"padding_value": 10**6}, "padding_value"),
        ({"max_length": 10**6}, r"max_length \(1000000\) is beyond the \d+ positions"),
        ({"attn_implementation": "sdpaa"}, "attn_implementation: sdpaa"),
        ({"attn_implementation": "flash_attention_3"}, "attn_implementation: flash_attention_3 needs a GPU; .*=sdpa"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "attn_implementation: .* needs a GPU"),
        ({"attn_implementation": "flex_attention"}, "attn_implementation: flex_attention needs a GPU"),
        ({"torch_dtype": "float16"}, "torch_dtype: float16"),
        ({"use_peft": True, "load_in_4bit": True}, "load_in_4bit: quantized training needs a CUDA GPU|bitsandbytes"),
        ({"use_peft": True, "lora_target_modules": ["q_proj", "vproj"]}, "lora_target_modules: .*no module vproj; it"),
        ({"use_peft": True, "lora_target_modules": "nothing.*"}, r"lora_target_modules nothing.*not found"),
        ({"use_peft": True, "lora_target_modules": "*_proj"}, "lora_target_modules"),
        ({"use_peft": True, "lora_modules_to_save": ["head"]}, "lora_modules_to_save: the model has no module head"),
    ],
)  # fmt: skip
def test_refused(config, fails, settings, message):
    assert re.search(message, fails(run_simpo, config(**settings)))


def test_reference_model_needs_the_positions_too(config, fails, model_folder, tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=32)).save_pretrained(tmp_path / "short")
    line = fails(run_wpo, config(gamma_beta_ratio=None, ref_model_name_or_path=str(tmp_path / "short")))
    assert "max_length (96) is beyond the 32 positions" in line and "short" in line


def test_launchers_settings_are_not_given_twice(config, fails, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "fsdp is set by the accelerate configuration too" in fails(run_simpo, config(fsdp="full_shard"))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"lora_r": 8, "lora_target_modules": "q_proj"}, "lora_r, lora_target_modules"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"eval_steps": 3}, "eval_steps"),
        ({"optim_args": "a=1"}, "optim_args"),
        ({"model_init_kwargs": {"revision": "x"}}, "model_init_kwargs"),
        ({"base_model_revision": "x", "generate_during_eval": True}, "base_model_revision"),
        ({"bnb_4bit_quant_type": "fp4", "use_peft": True}, "bnb_4bit_quant_type"),
    ],
)
def test_without_effect(config, monkeypatch, capsys, settings, names):
    def loaded(*_, **__):
        raise UserError("enough")

    monkeypatch.setattr(simpo.train.run, "load_rows", loaded)
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(**settings)])
    with pytest.raises(SystemExit):
        run_simpo()
    assert f"warning: {names}: without effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(n_positions=64), 64),
        (LlamaConfig(max_position_embeddings=128), 128),
        (LlamaConfig(max_position_embeddings=128, rope_parameters={"rope_type": "linear", "factor": 4.0}), 512),
        (  # Llama-3.1: already counted in max_position_embeddings
            LlamaConfig(
                max_position_embeddings=131072,
                rope_parameters={
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            ),
            131072,
        ),
        (  # Qwen2.5 with YaRN: not counted
            LlamaConfig(
                max_position_embeddings=32768,
                rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            ),
            131072,
        ),
        (BloomConfig(), None),
    ],
)  # fmt: skip
def test_positions(config, positions):
    assert position_limit(config) == positions


def adapters(**lora) -> ModelArguments:
    return ModelArguments(use_peft=True, **lora)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({}, "lora_dropout .0.05.: .*experts"),
        ({"lora_target_modules": ["w1"]}, "lora_target_modules .*w1"),
        ({"lora_dropout": 0.0}, None),
        ({"lora_dropout": 0.0, "lora_target_modules": ["w1", "w3", "q_proj"]}, None),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, None),
        ({"lora_target_modules": ["q_proj", "w9"]}, "no module w9"),
        ({"lora_target_modules": r".*self_attn\.[qk]_proj"}, None),
    ],
)
def test_adapters_on_experts(lora, message):
    model = model_on_paper(MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=2), None)
    assert all(weight.is_meta for weight in model.parameters())
    if message is None:
        check_adapters(model, adapters(**lora))
    else:
        with pytest.raises(UserError, match=message):
            check_adapters(model, adapters(**lora))


def test_resumed_adapters(model_folder, tmp_path):
    made_with = adapters(lora_r=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), get_peft_config(made_with)).save_pretrained(
        tmp_path
    )
    check_resumed_adapters(str(tmp_path), made_with)
    for args, message in (
        (adapters(lora_r=8), "lora_r: .* was trained with 4, now 8"),
        (adapters(lora_r=4, lora_alpha=8), "lora_alpha: .* was trained with 32, now 8"),
        (ModelArguments(), "use_peft: .* was trained with adapters"),
    ):
        with pytest.raises(UserError, match=message):
            check_resumed_adapters(str(tmp_path), args)


NASTY = [
    "", "~", "[]", "{}", "[1, 2]", "{a: 1}", "[[a]]", "1e999", ".nan", ".inf", "-.inf", "-1", "0", "0.5", "3",
    "9" * 30, "9" * 5000, "n" * 5000, "yes", "no", "2024-01-01", "2024-13-45", "1:30", '"\\0"', '"\\ud800"', "é🙂",
    "!!binary x", "!x y", "&a [*a]", "*a", "{% x %}", "'{% x %}'", "{", "[", "%", "@", "a: b", "- a", "? a", "../..",
    "/dev/null", "1,2", "| x", "\t",
]  # fmt: skip


def mutated(text: str, keys: list[str], rng: random.Random) -> str:
    """A YAML text with one to three faults."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        key, _, value = lines[at].partition(":")
        kind = rng.choice(["value", "value", "value", "new", "new", "key", "twice", "cut", "drop", "indent", "letter"])
        if kind == "value":
            lines[at] = f"{key}: {rng.choice(NASTY)}"
        elif kind == "new":
            lines.insert(at, f"{rng.choice(keys)}: {rng.choice(NASTY)}")
        elif kind == "key":
            lines[at] = f"{rng.choice([*NASTY, key[:-1], key.upper()])}:{value}"
        elif kind == "twice":
            lines.append(lines[at])
        elif kind == "indent":
            lines[at] = "  " + lines[at]
        elif kind == "drop":
            del lines[at]
        text = "\n".join(lines)
        at = rng.randrange(len(text) or 1)
        if kind == "cut":
            text = text[:at]
        elif kind == "letter":
            text = text[:at] + rng.choice("\x00\x07\"':{}[]&*!|>%@`#\\-é\u2028") + text[at + rng.randint(0, 1) :]
    return text


@pytest.mark.slow
def test_mutated_files_are_accepted_or_refused_in_one_line(config, monkeypatch, capsys):
    def accepted(*_, **__):
        raise UserError("accepted")

    monkeypatch.setattr(simpo.train.run, "load_rows", accepted)
    values = json.loads(Path(config(chat_template="{{ messages }}", use_peft=True, lora_r=4, bf16=True)).read_text())
    valid = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    names = {field.name for part in (ModelArguments, DataArguments, SimPOConfig) for field in dataclasses.fields(part)}
    keys = sorted(names - {"deepspeed"} | {"warmup_ratio", "dtype", "adafactor", "split_batches"})
    path = Path(values["output_dir"]).with_name("mutated.yaml")
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", str(path)])
    rng, outcomes = random.Random(0), []
    for _ in range(400):
        text = mutated(valid, keys, rng)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit) as stop:
            run_simpo()
        err = capsys.readouterr().err
        assert (
            stop.value.code == 2 and "Traceback" not in err and err.count("\nerror: ") + err.startswith("error: ") == 1
        )
        outcomes.append("error: accepted" in err)
    assert 20 < sum(outcomes) < 300
