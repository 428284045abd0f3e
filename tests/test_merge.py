"""scripts/merge.py and generate.py: LoRA results as whole models, and one question to any of them."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import generate
import merge
from simpo.chat.template import TEMPLATES
from simpo.console import UserError
from simpo.engine.vllm import engine_settings
from tiny_models import tiny_model, tiny_tokenizer

IDS = torch.arange(20)[None]


def make_adapter(folder: Path, base: str, **lora) -> Path:
    """A LoRA adapter with weights that change what the base says, saved with the tokenizer as training does."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**lora))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES["zephyr"].read_text()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture
def adapter(tmp_path, model_folder) -> Path:
    return make_adapter(tmp_path / "lora", model_folder, target_modules="all-linear")


def run(monkeypatch, program, *argv) -> None:
    monkeypatch.setattr(sys, "argv", ["program.py", *map(str, argv)])
    program.main()


def logits_of(folder) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


LORAS = {
    "all linear": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", LORAS)
def test_the_merged_model_is_the_adapted_one(model_folder, tied_base, tmp_path, monkeypatch, lora, tied):
    """Also where embeddings and head share a weight, and only one of them was adapted."""
    base = tied_base if tied else model_folder
    adapter = make_adapter(tmp_path / "lora", base, **LORAS[lora])
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(IDS).logits
    run(monkeypatch, merge, adapter, tmp_path / "whole")
    torch.testing.assert_close(logits_of(tmp_path / "whole"), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits_of(base)).abs().max() > 0.1
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert not any("adapter" in name or name.endswith(".bin") or name == ".lock" for name in files)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert tokenizer.chat_template == TEMPLATES["zephyr"].read_text()
    assert not (tmp_path / "whole.merging").exists()


def test_merging_again(model_folder, adapter, tmp_path, monkeypatch, capsys, fails):
    """A stopped merge leaves no output, and its leftovers do not reach the next one; a finished one is left alone."""
    (tmp_path / "whole.merging").mkdir()
    (tmp_path / "whole.merging" / "model-00007-of-00009.safetensors").write_text("torn")
    run(monkeypatch, merge, adapter, tmp_path / "whole")
    assert not list((tmp_path / "whole").glob("model-0*"))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").glob("*.safetensors")}
    run(monkeypatch, merge, adapter, tmp_path / "whole")
    assert "already merged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written
    make_adapter(tmp_path / "lora", model_folder, target_modules=["v_proj"])  # trained again
    assert "holds output of other settings (adapter_weights was" in fails(
        merge.main, str(adapter), str(tmp_path / "whole")
    )


def test_a_base_that_moved_and_the_precision(model_folder, adapter, tmp_path, monkeypatch, fails):
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    assert "base_model_name_or_path in the adapter_config" in fails(merge.main, str(adapter), str(tmp_path / "whole"))
    run(monkeypatch, merge, adapter, tmp_path / "whole", "--base_model", moved, "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto").dtype == torch.bfloat16


def test_what_cannot_be_merged(model_folder, adapter, tmp_path, fails):
    out = str(tmp_path / "whole")
    assert "holds no adapter" in fails(merge.main, model_folder, out)
    assert "holds no model" in fails(merge.main, str(tmp_path), out)
    assert "adapter: there is no folder" in fails(merge.main, str(tmp_path / "nowhere"), out)
    assert "is a file; name the model's folder" in fails(merge.main, str(adapter / "adapter_config.json"), out)
    assert "some/adapter holds no adapter" in fails(merge.main, "some/adapter", out)
    assert "holds output without a record" in fails(merge.main, str(adapter), model_folder)
    assert "invalid choice: 'int8'" in fails(merge.main, str(adapter), out, "--dtype", "int8")
    assert "output" in fails(merge.main, str(adapter))
    quantized = shutil.copytree(model_folder, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    error = fails(merge.main, str(adapter), out, "--base_model", str(quantized))
    assert "holds quantized weights (bitsandbytes); name what it was made of with --base_model" in error
    assert not Path(out).exists()


def test_decoding_names_the_merge(adapter):
    with pytest.raises(UserError, match=rf"merge it into its base first \(python scripts/merge.py {adapter} "):
        engine_settings(str(adapter), "auto", None, 1, None, False)


# ---- generate.py -----------------------------------------------------------------------------------------------------


def ask(monkeypatch, capsys, model, *options) -> tuple[str, str]:
    run(monkeypatch, generate, model, "What is 1 plus 1?", "--max_new_tokens", "6", *options)
    return capsys.readouterr()


def test_the_answer_of_an_adapter_is_the_merged_models(adapter, tmp_path, monkeypatch, capsys):
    run(monkeypatch, merge, adapter, tmp_path / "whole")
    capsys.readouterr()
    answers = [ask(monkeypatch, capsys, folder).out for folder in (adapter, tmp_path / "whole")]
    assert answers[0] == answers[1] and answers[0].strip()
    assert ask(monkeypatch, capsys, adapter, "--temperature", "0.7", "--seed", "1").out.strip()


def test_a_base_model_continues_the_prompt(tmp_path, monkeypatch, capsys):
    base = tiny_model(tmp_path / "base", tokenizer=tiny_tokenizer(adds_bos=True, template=None))
    found = ask(monkeypatch, capsys, base)
    assert "no chat template: it goes on with the prompt as it is written" in found.err and found.out.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["Hi", "--temperature", "-1"], "temperature: must be 0 or more, got -1.0"),
        (["Hi", "--temperature", "nan"], "temperature: must be 0 or more"),
        (["Hi", "--temperature", "hot"], "invalid float value: 'hot'"),
        (["Hi", "--top_p", "0"], r"top_p: must lie in \(0, 1\]"),
        (["Hi", "--max_new_tokens", "0"], "max_new_tokens: must be at least 1"),
        (["Hi", "there"], "unrecognized arguments: there"),
        ([], "the following arguments are required: prompt"),
        (["word " * 3000], "prompt: .* tokens, where the model reads 2048"),
    ],
)
def test_bad_questions(model_folder, fails, options, message):
    assert re.search(message, fails(generate.main, model_folder, *options))


def test_bad_models(model_folder, tmp_path, fails):
    assert "there is no folder" in fails(generate.main, str(tmp_path / "nowhere"), "Hi")
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is a Git LFS pointer" in fails(generate.main, str(broken), "Hi")
