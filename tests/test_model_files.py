"""Damaged, missing and foreign model files: one line that names the file, before any data is prepared."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from run_simpo import main
from simpo.config import DataArguments, ModelArguments
from simpo.model_files import safetensors_flaw
from simpo.train.model import get_tokenizer
from tiny_models import tiny_model, tiny_tokenizer

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4976698672\n"


@pytest.fixture
def folder(tmp_path, model_folder) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def adapter(tmp_path, folder) -> Path:
    """A LoRA adapter of `folder`, with weights that change what the base says."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules="all-linear"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def point(file: Path) -> None:
    file.write_text(POINTER)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def shard(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_shard(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def tear_index(folder: Path) -> None:
    shard(folder)
    cut(folder / "model.safetensors.index.json", 100)


def lose_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))


def keep_only(folder: Path, *names: str) -> None:
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()


FLAWS = {
    "pointer weights": (lambda f: point(f / "model.safetensors"), "model.safetensors is a Git LFS pointer"),
    "pointer tokenizer": (lambda f: point(f / "tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
    "pointer config": (lambda f: point(f / "config.json"), "config.json is a Git LFS pointer"),
    "cut weights": (lambda f: cut(f / "model.safetensors", 50_000), "model.safetensors is cut off or damaged"),
    "cut header": (lambda f: cut(f / "model.safetensors", 500), "model.safetensors is cut off"),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), "model.safetensors is cut off"),
    "cut tokenizer": (lambda f: cut(f / "tokenizer.json", 1000), "tokenizer.json is not JSON"),
    "cut config": (lambda f: cut(f / "config.json", 40), "config.json is not JSON"),
    "odd config": (lambda f: (f / "config.json").write_text("[]"), "config.json must hold a JSON object"),
    "odd tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load the tokenizer"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no model (no config.json)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights (model.safetensors is missing)"),
    "no tokenizer": (lambda f: keep_only(f, "config.json", "model.safetensors"), "cannot load the tokenizer"),
    "pickled": (pickle, "holds pickled weights only (pytorch_model.bin)"),
    "lost shard": (lose_shard, "which is not in the folder (1 of"),
    "torn index": (tear_index, "model.safetensors.index.json is not JSON"),
    "lost tensor": (lose_tensor, "1 tensors are missing, such as model.layers.1.mlp.up_proj.weight"),
    "other sizes": (widen, "model_name_or_path: cannot load"),
    "unknown family": (
        lambda f: (f / "config.json").write_text('{"model_type": "nonesuch"}'), "model_name_or_path: cannot load"
    ),
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_damaged_model(config, folder, fails, flaw):
    damage, message = FLAWS[flaw]
    damage(folder)
    error = fails(main, config(model_name_or_path=str(folder)))
    assert message in error and "model" in error


ADAPTER_FLAWS = {
    "pointer": (lambda a, b: point(a / "adapter_model.safetensors"), "is a Git LFS pointer"),
    "cut": (lambda a, b: cut(a / "adapter_model.safetensors", 2000), "adapter_model.safetensors is cut off"),
    "torn config": (lambda a, b: cut(a / "adapter_config.json", 30), "adapter_config.json is not JSON"),
    "no weights": (lambda a, b: (a / "adapter_model.safetensors").unlink(), "holds no weights (adapter_model"),
    "lost base": (lambda a, b: shutil.rmtree(b), "base_model_name_or_path in the adapter_config"),
    "broken base": (
        lambda a, b: cut(b / "model.safetensors", 900),
        "base_model_name_or_path in the adapter_config.json",
    ),
}


@pytest.mark.parametrize("flaw", ADAPTER_FLAWS)
def test_a_damaged_adapter(config, folder, adapter, fails, flaw):
    damage, message = ADAPTER_FLAWS[flaw]
    damage(adapter, folder)
    assert message in fails(main, config(model_name_or_path=str(adapter)))


def test_an_adapter_of_another_base(config, folder, adapter, fails):
    """Retrained wider, resized, or simply another model: its tensors do not fit."""
    tiny_model(folder, hidden_size=32, head_dim=16)
    assert "does not fit its base" in fails(main, config(model_name_or_path=str(adapter)))


def test_an_adapter_of_a_resized_base(config, folder, adapter, fails):
    """Tokens were added to the base before training: the adapter brings its own embeddings."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(500)
    get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    ).save_pretrained(adapter)
    assert "does not fit its base" in fails(main, config(model_name_or_path=str(adapter)))


def test_a_tokenizer_of_another_model(config, tmp_path, fails, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(60)])
    tokenizer.save_pretrained(tmp_path / "larger")
    error = fails(main, config(tokenizer_name_or_path=str(tmp_path / "larger")))
    assert re.search(r"the tokenizer has \d+ tokens and the model embeds \d+: they do not belong together", error)
    wide = ModelArguments(model_name_or_path=tiny_model(tmp_path / "wide", vocab_size=600))
    get_tokenizer(wide, DataArguments())
    assert "tokens, where the model embeds 600: do they belong together?" in capsys.readouterr().err


def test_a_whole_file_has_no_flaw(model_folder, adapter):
    assert safetensors_flaw(Path(model_folder) / "model.safetensors") is None
    assert safetensors_flaw(adapter / "adapter_model.safetensors") is None
