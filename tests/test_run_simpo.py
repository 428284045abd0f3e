"""scripts/run_simpo.py: the recorded runs, resuming, LoRA, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, losses, make_pairs, run_script, write_jsonl
from recorded import check_recorded_run
from safetensors.torch import load_file, save_file

import generate
import run_simpo
from run_simpo import main
from simpo.train.launcher import parse_arguments
from simpo_config import SimPOConfig
from tiny_models import tiny_model, tiny_tokenizer

SCRIPT = str(ROOT / "scripts" / "run_simpo.py")


def run(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", *argv])
    main()


# ---- the recorded runs of the original ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "llama3-v2", "llama3-sft", "mistral"])
def test_recorded_run(shared, tmp_path, monkeypatch, name):
    check_recorded_run(shared, tmp_path, monkeypatch, run_simpo, "SimPOTrainer", name)


def test_recorded_initial_logps(shared):
    from transformers import AutoModelForCausalLM

    from simpo.data.tokenize import PreferenceCollator
    from simpo.logps.plain import plain_logps

    record = json.loads((shared / "golden" / "records" / "llama3.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(
        shared / "golden/models/tiny_llama3", attn_implementation="eager", dtype=torch.float32
    )
    rows, values = record["rows"]["test"]["first"], record["init_eval"]
    for row, expected in zip(rows, values, strict=False):
        batch = {k: v.transpose(0, 1).flatten(0, 1) for k, v in PreferenceCollator(0)([row]).items()}
        with torch.no_grad():
            logps = plain_logps(model, **batch).means
        assert logps.tolist() == pytest.approx([expected["chosen_logp"], expected["rejected_logp"]], abs=1e-5)


# ---- a whole run -------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_answers_and_says_what_it_did(config, tmp_path, monkeypatch, capsys):
    token = "hf_thisIsNobodysToken"
    monkeypatch.setenv("HF_TOKEN", "")
    settings = {"eval_strategy": "steps", "eval_steps": 2, "generate_during_eval": True, "hub_token": token}
    run(monkeypatch, config(do_eval=True, **settings))
    captured, folder = capsys.readouterr(), tmp_path / "out"
    out = captured.out
    assert token not in captured.out + captured.err and os.environ["HF_TOKEN"] == token  # there to push with
    assert not any(token.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert "4 pairs (1 processes x 2 x 2 accumulated), 4 steps" in out and "about 1.313 expected" in out
    assert out.count('\n    rejected  "<|') == 3 and f"model in {folder}" in out
    results = json.loads((folder / "all_results.json").read_text())
    assert results["train_samples"] == 48 and 0 < results["eval_rewards/accuracies"] <= 1
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    card = (folder / "README.md").read_text()
    assert "2405.14734" in card and "gamma_beta_ratio: 0.5" in card
    settings = yaml.safe_load((folder / "run_config.yaml").read_text())["settings"]
    assert settings["learning_rate"] == 1e-3
    lines = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4 and lines[0]["prompt"].startswith("<|begin_of_text|>")
    monkeypatch.setattr(sys, "argv", ["generate.py", str(folder), "What is 1 plus 1?", "--max_new_tokens", "5"])
    generate.main()
    assert capsys.readouterr().out.strip()


def test_missing_test_split_trains_without_evaluation(config, tmp_path, monkeypatch, capsys):
    run(monkeypatch, config(dataset_splits=["train"], do_eval=True, eval_strategy="steps", max_steps=1))
    assert "training without evaluation" in capsys.readouterr().err
    assert "eval_loss" not in json.loads((tmp_path / "out" / "all_results.json").read_text())


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mistral"])
def test_other_families(config, tmp_path, monkeypatch, capsys, family):
    tokenizer = tiny_tokenizer(template={"qwen2": "zephyr", "gemma2": "gemma2", "mistral": "zephyr"}[family])
    if family == "qwen2":
        tokenizer.bos_token = None
    extra = {"sliding_window": 32, "query_pre_attn_scalar": 32} if family == "gemma2" else {}
    model = tiny_model(tmp_path / f"tiny_{family}", family, tokenizer=tokenizer, **extra)
    run(monkeypatch, config(model_name_or_path=model, max_steps=2, attn_implementation="sdpa"))
    captured = capsys.readouterr()
    assert ("using eager instead" in captured.err) == ("eager attention" in captured.out) == (family == "gemma2")
    assert ("the model's path says Mistral" in captured.out) == (family == "mistral")
    assert all(0 < entry["loss"] < 5 for entry in losses(tmp_path / "out"))


@pytest.mark.slow
def test_accumulation_makes_no_difference(config, tmp_path, monkeypatch):
    """1 x 4 accumulated, 4 x 1, and 2 x 2 give the same steps."""
    for name, batch, accumulated in (("a", 1, 4), ("b", 4, 1), ("c", 2, 2)):
        run(
            monkeypatch, config(), f"--output_dir={tmp_path / name}", f"--per_device_train_batch_size={batch}",
            f"--gradient_accumulation_steps={accumulated}",
        )  # fmt: skip
    for step in zip(*(losses(tmp_path / name) for name in "abc"), strict=True):
        for metric in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            values = [entry[metric] for entry in step]
            assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-4, abs=1e-5)


def test_lora(config, tmp_path, monkeypatch, model_folder):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    run(monkeypatch, config(use_peft=True, lora_r=4, gradient_checkpointing=True, learning_rate=1e-2))
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    moved = [p for name, p in adapted.named_parameters() if "lora_B" in name and p.abs().sum() > 0]
    assert len(moved) == 14  # seven linear layers in each of two blocks
    # An adapter trained here can be the start of another run: it is merged into its base.
    run(monkeypatch, config(model_name_or_path=str(tmp_path / "out"), output_dir=str(tmp_path / "on_top"), max_steps=1))
    merged = load_file(tmp_path / "on_top" / "model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    key = "model.layers.0.self_attn.q_proj.weight"
    assert merged.keys() >= {key} and not torch.allclose(merged[key], base[key], atol=1e-3)


# ---- stopping and resuming ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(config, tmp_path, warm):
    path = config(max_steps=8, save_strategy="steps", save_steps=3)
    whole = run_script("python", SCRIPT, path, f"--output_dir={tmp_path / 'whole'}", env=warm)
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    command = ["python", SCRIPT, path, f"--output_dir={killed}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=os.environ | warm, **quiet) as process:
        deadline = time.monotonic() + 300
        while not (killed / "checkpoint-3" / "trainer_state.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "model.safetensors").exists()
    newest = max(killed.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    torn = killed / "checkpoint-7"  # as if killed while writing the next one
    shutil.copytree(newest, torn)
    (torn / "trainer_state.json").unlink()
    resumed = run_script(*command, env=warm)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {newest}" in resumed.stdout and f"skipping {torn}" in resumed.stderr
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    assert [e["step"] for e in losses(killed)] == list(range(1, 9))


@pytest.fixture
def checkpoint(config, tmp_path, monkeypatch) -> Path:
    run(monkeypatch, config(max_steps=2, save_strategy="steps", save_steps=1))
    (tmp_path / "out" / "digests.json").unlink()  # as if stopped in its final save
    (tmp_path / "out" / "trainer_state.json").unlink()
    return tmp_path / "out" / "checkpoint-2"


@pytest.mark.parametrize("file", ["trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_torn_checkpoints_are_skipped(checkpoint, config, monkeypatch, capsys, file):
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: len(content) // 2])
    run(monkeypatch, config(max_steps=2))
    captured = capsys.readouterr()
    assert f"skipping {checkpoint}: {file} is" in captured.err
    assert f"resuming from {checkpoint.with_name('checkpoint-1')}" in captured.out


def test_checkpoint_of_another_run_is_refused(checkpoint, config, fails, tmp_path):
    other = tiny_model(tmp_path / "other", seed=1)
    assert "holds a checkpoint of another run (model:" in fails(main, config(model_name_or_path=other))
    (tmp_path / "out" / "run_config.yaml").unlink()  # nothing recorded: the architecture still tells
    wider = tiny_model(tmp_path / "wider", hidden_size=128)
    assert "is a checkpoint of another model (hidden_size: 64, now 128)" in fails(
        main, config(model_name_or_path=wider)
    )


def test_named_checkpoint(checkpoint, config, fails, monkeypatch, capsys, tmp_path):
    run(monkeypatch, config(max_steps=2), f"--resume_from_checkpoint={checkpoint.with_name('checkpoint-1')}")
    assert "[transformers]" not in capsys.readouterr().out
    (checkpoint / "trainer_state.json").unlink()
    named = f"--resume_from_checkpoint={checkpoint}"
    assert "is not a whole checkpoint: trainer_state.json" in fails(main, config(), named)
    assert "is not a folder" in fails(main, config(), "--resume_from_checkpoint=nowhere")


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": None}, "model_name_or_path: not given, in a YAML (the first argument) or as --model"),
        ({"model_name_or_path": "nobody/nothing"}, "nobody/nothing"),
        ({"dataset_mixer": {"nobody/nothing": 1.0}}, "nobody/nothing is neither a folder"),
        ({"dataset_splits": ["train_prefs", "test"]}, ". (see dataset_splits)"),
        ({"report_to": "wandb"}, "report_to: wandb is not installed: pip install wandb"),
        ({"torch_dtype": "float16"}, "torch_dtype: float16 weights cannot be trained"),
        ({"use_peft": True, "load_in_4bit": True}, "load_in_4bit: quantized training needs a CUDA GPU"),
        ({"max_prompt_length": 96}, "max_prompt_length (96) must be positive and below max_length (96)"),
        ({"chat_template": "lama"}, "chat_template: 'lama'"),
        ({"dataset_splits": ["test"]}, "nothing to train on"),
    ],
)
def test_refused(config, fails, tmp_path, changes, message):
    assert message in fails(main, config(**changes))
    assert not (tmp_path / "out").exists()


def test_refused_models(config, fails, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=400)).save_pretrained(
        tmp_path / "t5"
    )
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    assert "is an encoder-decoder model" in fails(main, config(model_name_or_path=str(tmp_path / "t5")))
    bare = tiny_tokenizer()
    bare.eos_token = None
    nothing = tiny_model(tmp_path / "nothing", tokenizer=bare)
    assert "neither a pad nor an EOS token" in fails(main, config(model_name_or_path=nothing))
    assert not (tmp_path / "out").exists()


def test_a_run_that_became_nan_ends(config, fails, tmp_path):
    """transformers would log a loss of 0, train on, and save the ruined weights."""
    folder = Path(tiny_model(tmp_path / "ruined"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    error = fails(main, config(model_name_or_path=str(folder), logging_steps=1, save_strategy="steps", save_steps=1))
    assert "the gradient of step 1 is not finite (nan)" in error
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_no_pair_left(config, fails, tmp_path):
    rows = make_pairs(3)
    for row in rows:
        row["rejected"] = row["chosen"]
    write_jsonl(tmp_path / "same" / "train.jsonl", rows)
    settings = {"dataset_mixer": {str(tmp_path / "same"): 1.0}, "dataset_splits": ["train"]}
    assert "no pair is left of 3: 3 have chosen equal to rejected" in fails(main, config(**settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_errors_from_the_shell_have_no_traceback(config):
    result = run_script(sys.executable, SCRIPT, config(), "--betta=2")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: command line: unknown key 'betta'; did you mean beta?\n"


def test_warnings(config, monkeypatch, capsys, tmp_path):
    path = Path(config(max_steps=1, learning_rate=3e-6))
    paper = path.rename(path.with_name("llama-3-8b-base-simpo.yaml"))
    run(monkeypatch, str(paper))
    err = capsys.readouterr().err
    assert "learning_rate 3e-06 is high" in err and "4 pairs per optimizer step; the paper's results need 128" in err


def test_launcher_precision_wins(config, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(bf16=None)])
    assert parse_arguments(SimPOConfig)[-1].bf16 and "bf16" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(bf16=False)])
    *_, args = parse_arguments(SimPOConfig)
    assert args.bf16 and "bf16: false gives way" in capsys.readouterr().err


def test_no_training_on_the_cpu_beside_a_card_that_torch_cannot_use(config, fails, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("simpo.train.launcher.NVIDIA", (tmp_path,))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for asked in (None, False):
        message = fails(run_simpo.main, config(use_cpu=asked))
        assert "cannot use this machine's NVIDIA device" in message and "580 or later" in message
    assert "580 or later" in fails(run_simpo.main, config(), "--use_cpu=false")
    assert not (tmp_path / "out").exists()
    for in_file, *argv in ([True], [False, "--use_cpu"], [None, "--no_cuda=true"]):
        monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(use_cpu=in_file), *argv])
        assert parse_arguments(SimPOConfig)[-1].use_cpu
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(use_cpu=None)])
    for name, value in (("ACCELERATE_USE_CPU", "true"), ("CUDA_VISIBLE_DEVICES", "")):
        with monkeypatch.context() as change:
            change.setenv(name, value)
            assert parse_arguments(SimPOConfig)[-1].use_cpu
    monkeypatch.setattr(torch.version, "cuda", None)  # a build for CPUs, as of make quickstart
    assert parse_arguments(SimPOConfig)[-1].use_cpu and "built without CUDA" in capsys.readouterr().err


def test_flash_attention_of_a_file_and_of_the_command_line_on_a_cpu(config, monkeypatch, tmp_path, capsys, fails):
    path = config(attn_implementation="flash_attention_2", max_steps=1)
    line = fails(main, path, "--attn_implementation=flash_attention_2")
    assert "attn_implementation: flash_attention_2 needs a GPU; here: --attn_implementation=sdpa" in line
    monkeypatch.setattr(sys, "argv", ["script.py", path])
    main()
    captured = capsys.readouterr()
    assert "attn_implementation: flash_attention_2 needs a GPU: using PyTorch's own attention" in captured.err
    assert "sdpa attention" in captured.out and (tmp_path / "out" / "model.safetensors").is_file()
