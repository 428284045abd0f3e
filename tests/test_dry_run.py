"""--dry_run: what it checks, prints and leaves alone, and the arithmetic of its memory."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_pairs, write_jsonl
from transformers import LlamaConfig, LlamaForCausalLM

import run_preference
import run_simpo
import run_wpo
from simpo.config import ModelArguments
from simpo.console import UserError
from simpo.train.dry_run import shape_of, what_to_change
from simpo.train.launch_plan import ALL, WHOLE, launch_from_file
from simpo.train.ledger import RESERVED, Plan, ledger
from simpo.train.model_on_paper import model_on_paper

ZERO3 = str(ROOT / "accelerate_configs" / "deepspeed_zero3.yaml")
GPUS = [f"--dry_run={ZERO3}", "--dry_run_gpu_gb=80"]
NOT_SIMPO = {"gamma_beta_ratio": None}


@pytest.mark.parametrize(
    ("script", "changes", "words"),
    [
        (run_simpo, {}, "about 1.313 expected"),
        (run_simpo, {"use_peft": True, "gradient_checkpointing": True}, "shared prompts"),
        (run_wpo, {**NOT_SIMPO, "precompute_ref_log_probs": True}, "wpo"),
        (run_preference, {**NOT_SIMPO, "objective": "kto"}, "reference copy"),
    ],
)
def test_a_dry_run_says_what_a_run_would_and_leaves_nothing(
    script, changes, words, config, tmp_path, monkeypatch, capsys
):
    path = config(push_to_hub=True, hub_model_id="nobody/nothing", dry_run=True, **changes)
    monkeypatch.setattr(sys, "argv", ["script.py", path])
    script.main()
    out = capsys.readouterr().out
    assert words in out and "4 pairs (1 processes x 2 x 2 accumulated), 4 steps" in out
    assert out.count("of the training data") == 3 and " a step (mean)" in out and "    together  " in out
    assert out.endswith("dry run: nothing was trained or written\n")
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_folder_stays_as_it_is(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["script.py", config(), "--dry_run"])
    run_simpo.main()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_plan_for_gpus_that_are_not_here(config, tmp_path, monkeypatch, capsys):
    path = config(attn_implementation="flash_attention_2", use_peft=True, load_in_4bit=True, use_cpu=None)
    monkeypatch.setattr(sys, "argv", ["script.py", path, *GPUS])
    run_simpo.main()
    out, err = capsys.readouterr()
    assert "16 pairs (4 processes x 2 x 2 accumulated)" in out and "attending by variable lengths" in out
    assert "per GPU (4 processes, ZeRO-3)" in out and "bf16 mixed precision" in out and "80.00 GB" in out
    assert "flash_attention_2 is not tried on this machine" in err


def test_what_a_real_run_would_refuse_is_refused(config, fails, tmp_path, model_folder):
    assert fails(run_simpo.main, config(), "--dry_run", "--beta=-1").startswith("error: ")
    assert "model_name_or_path: " in fails(run_simpo.main, config(model_name_or_path="no/such"), "--dry_run")
    bare = shutil.copytree(model_folder, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert "tokenizer" in fails(run_simpo.main, config(model_name_or_path=str(bare)), "--dry_run")
    write_jsonl(tmp_path / "same" / "train.jsonl", [row | {"rejected": row["chosen"]} for row in make_pairs(4)])
    same = config(dataset_mixer={str(tmp_path / "same"): 1.0}, dataset_splits=["train"])
    assert "no pair is left" in fails(run_simpo.main, same, "--dry_run")
    (tmp_path / "file").touch()
    assert "is not a folder" in fails(run_simpo.main, config(output_dir=str(tmp_path / "file" / "out")), "--dry_run")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dry_run_gpu_gb=0.001"], "memory: .* GB per process needed, 0.0 there: "),
        (["--dry_run_gpu_gb=0"], "dry_run_gpu_gb .0. must be positive"),
        (["--dry_run=nowhere.yaml"], "dry_run: nowhere.yaml is no configuration of accelerate launch: "),
        ([f"--dry_run={ROOT / 'README.md'}"], "README.md is no configuration of accelerate launch: "),
        ([f"--dry_run={ROOT / 'training_configs' / 'mistral.yaml'}"], "mistral.yaml is no configuration of accelerate"),
    ],
)
def test_what_does_not_fit_or_is_no_plan(more, message, config, fails):
    more = ["--dry_run", *more] if not more[0].startswith("--dry_run=") else more
    assert re.search(message, fails(run_simpo.main, config(), *more))


# ---- the arithmetic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how", "processes", "shards"),
    [
        ("deepspeed_zero3", "ZeRO-3", 4, ALL),
        ("deepspeed_zero3_multinode", "ZeRO-3", 16, ALL),
        ("fsdp", "FSDP", 8, ALL),
        ("fsdp2", "FSDP", 8, ALL),
        ("multi_gpu", "data parallel", 8, WHOLE),
    ],
)
def test_launches_of_the_shipped_files(name, how, processes, shards):
    launch = launch_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert (launch.how, launch.processes, launch.shards, launch.on_cpu) == (how, processes, shards, False)
    assert launch.mixed_precision == "bf16"


def test_other_stages(tmp_path):
    (tmp_path / "zero.json").write_text(
        '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}', encoding="utf-8"
    )
    text = Path(ZERO3).read_text()
    file = tmp_path / "launch.yaml"
    file.write_text(text.replace("  zero_stage: 3\n", f"  deepspeed_config_file: {tmp_path / 'zero.json'}\n"))
    launch = launch_from_file(str(file))
    assert (launch.how, launch.shards, launch.offloads) == ("ZeRO-2", {"gradients", "optimizer"}, True)
    file.write_text((ROOT / "accelerate_configs/fsdp.yaml").read_text().replace("FULL_SHARD", "SHARD_GRAD_OP"))
    assert launch_from_file(str(file)).keeps_weights
    file.write_text(text.replace("zero_stage: 3", "zero_stage: 7"))
    with pytest.raises(UserError, match="no configuration"):
        launch_from_file(str(file))


@pytest.fixture(scope="module")
def llama3_8b() -> Plan:
    """2 pairs of 2,048 tokens, all of them labels, on 4 GPUs."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    return Plan(
        shape=shape_of(model_on_paper(config, "sdpa"), ModelArguments()),
        launch=launch_from_file(ZERO3),
        micro_batch=lambda pairs: (pairs * 4096, pairs * 4096, 2048),
        pairs=2,
        accumulation=16,
        mixed=True,
        checkpointing=True,
        fused=True,
        logits_memory=None,
        optim="adamw_torch_fused",
    )


def needs(plan: Plan, **changes) -> float:
    """GB, without what CUDA and NCCL take."""
    return (sum(ledger(dataclasses.replace(plan, **changes), 80e9)[0].values()) - RESERVED) / 1e9


def test_llama3_8b_on_four_gpus(llama3_8b):
    shape = llama3_8b.shape
    assert shape.trained == 8_030_261_248 and shape.layer == 218_112_000
    resident = {name: value / 1e9 for name, value in ledger(llama3_8b, 80e9)[0].items()}
    assert sum(resident[name] for name in ("weights", "gradients", "optimizer")) == pytest.approx(32.1, abs=0.1)
    assert 43 < needs(llama3_8b, logits_memory=0.0) < needs(llama3_8b) < 50
    assert 55 < needs(llama3_8b, fused=False) < 63


def test_what_saves_memory_saves_it(llama3_8b):
    launch = llama3_8b.launch
    whole = needs(llama3_8b)
    assert needs(llama3_8b, checkpointing=False) > whole + 50
    assert needs(llama3_8b, launch=dataclasses.replace(launch, processes=8)) < whole - 15
    assert needs(llama3_8b, launch=dataclasses.replace(launch, how="ZeRO-2", shards=ALL - {"weights"})) > whole + 8
    assert needs(llama3_8b, reference=2 * llama3_8b.shape.trained) == pytest.approx(whole + 4.0, abs=0.1)
    assert needs(llama3_8b, launch=dataclasses.replace(launch, offloads=True)) < whole - 20


def test_what_to_change_makes_it_fit(llama3_8b):
    plan = dataclasses.replace(llama3_8b, checkpointing=False)
    assert what_to_change(plan, 80e9) == "gradient_checkpointing: true"
    assert what_to_change(llama3_8b, 30e9).endswith("8 processes")
    alone = dataclasses.replace(plan.launch, processes=1, how="one process", shards=WHOLE)
    assert "use_peft: true" in what_to_change(dataclasses.replace(llama3_8b, launch=alone), 24e9)


def test_a_quantized_base_is_counted_as_it_is_stored():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2))
    model.requires_grad_(False)
    whole = shape_of(model, ModelArguments()).frozen_bytes
    linear = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))
    quantized = shape_of(model, ModelArguments(use_peft=True, load_in_8bit=True)).frozen_bytes
    assert whole - quantized == 3 * linear
