"""Reading a YAML file and the command line: spellings, values, and what is refused."""

import os
import re
import sys
from pathlib import Path

import pytest

from run_simpo import main as run_simpo
from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.config.reading import split_overrides
from simpo.console import UserError
from simpo_config import SimPOConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _bf16_everywhere(monkeypatch):
    """The shipped files ask for bf16 and wandb; neither a GPU nor wandb is needed to read them."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def parse(*argv: str, config=SimPOConfig):
    return H4ArgumentParser((ModelArguments, DataArguments, config)).parse(list(argv), {"use_cpu": True})


def test_every_spelling_of_an_override(config):
    path = config(warmup_ratio=0.1, evaluation_strategy="steps", eval_steps=2)
    model, data, args = parse(
        path, "--max_length=1024", "--max-prompt-length", "800", "--learning_rate=5e-7", "--bf16=false", "--use_peft",
        "--lora_target_modules=q_proj,v_proj", '--dataset_mixer={"a=b": 0.5}', "--dataset_splits", "train_x", "test_x",
        "--run_name=a=b", "--eval_steps", "10", "--hub_model_id=null", "--gradient_checkpointing_kwargs",
        '{"use_reentrant": false}', "--dtype", "float32",
    )  # fmt: skip
    assert (args.max_length, args.max_prompt_length, args.learning_rate, args.bf16) == (1024, 800, 5e-7, False)
    assert (args.warmup_steps, args.eval_strategy.value, args.eval_steps) == (0.1, "steps", 10)
    assert (args.run_name, args.hub_model_id) == ("a=b", None)
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert model.use_peft and model.lora_target_modules == ["q_proj", "v_proj"] and model.torch_dtype == "float32"
    assert data.dataset_mixer == {"a=b": 0.5} and data.dataset_splits == ["train_x", "test_x"]
    assert parse(path, "--dataset_splits=train_x,test_x")[1].dataset_splits == ["train_x", "test_x"]


def test_old_spellings_give_one_warning(config, capsys):
    old = {
        "evaluation_strategy": "no", "warmup_ratio": 0.2, "no_cuda": True, "group_by_length": True,
        "overwrite_output_dir": True, "save_safetensors": True, "logging_dir": "x", "use_cpu": None,
    }  # fmt: skip
    *_, args = parse(config(**old))
    assert (args.warmup_steps, args.use_cpu, args.train_sampling_strategy) == (0.2, True, "group_by_length")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: old spellings")]
    assert len(warnings) == 1 and "evaluation_strategy -> eval_strategy" in warnings[0]


TEMPLATE = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '=\n' }}{% endfor %}{{ {'a': [1]} }}"


@pytest.mark.parametrize(
    "text", [TEMPLATE, "{{ bos_token }}", "[INST] {{ x }}", "{a: b", "a,b", "null hypothesis", "1e3"]
)
def test_text_is_never_read_as_yaml(config, text):
    _, from_yaml, _ = parse(config(chat_template=text))
    plain = config()
    for data in (from_yaml, parse(plain, "--chat_template", text)[1], parse(plain, f"--chat_template={text}")[1]):
        assert data.chat_template == text


def test_text_beside_other_types(config):
    *_, args = parse(
        config(lr_scheduler_kwargs='{"num_cycles": 2}'), "--include_num_input_tokens_seen=true", "--optim_args=a=1,b=2"
    )
    assert args.lr_scheduler_kwargs == {"num_cycles": 2} and args.optim_args == "a=1,b=2"
    assert args.include_num_input_tokens_seen == "all"
    with pytest.raises(UserError, match="command line: gradient_checkpointing_kwargs: not valid YAML"):
        parse(config(), "--gradient_checkpointing_kwargs={a: 1")


def test_parsing_touches_nothing(config, tmp_path, monkeypatch):
    """The launcher's wishes are settled where a run begins, not in the parser."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    lock = tmp_path / "extensions" / "ops" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    before = dict(os.environ)
    H4ArgumentParser((ModelArguments, DataArguments)).parse(["--trust_remote_code=true"])
    assert os.environ == before and lock.exists()


@pytest.mark.parametrize(
    ("old", "key", "value"),
    [
        ({"use_flash_attention_2": True}, "attn_implementation", "flash_attention_2"),
        ({"use_flash_attention_2": "false"}, "attn_implementation", None),
        ({"group_by_length": "false"}, "train_sampling_strategy", "random"),
        ({"warmup_ratio": 0}, "warmup_steps", 0),
        ({"tokenizer": "somewhere"}, "tokenizer_name_or_path", "somewhere"),
        ({"lora_target_modules": "all-linear"}, "lora_target_modules", "all-linear"),
        ({"lora_target_modules": "q_proj, v_proj"}, "lora_target_modules", ["q_proj", "v_proj"]),
        ({"lora_target_modules": "o_proj"}, "lora_target_modules", ["o_proj"]),
        ({"lora_target_modules": r".*layers\.\d{1,2}\..*_proj"}, "lora_target_modules", r".*layers\.\d{1,2}\..*_proj"),
    ],
)
def test_spellings(config, old, key, value):
    found = {name: v for part in parse(config(**old)) for name, v in vars(part).items()}
    assert found[key] == value


def test_unquoted_no_is_a_strategy(config):
    *_, args = parse(config(save_strategy=False, eval_strategy=False))
    assert args.save_strategy.value == args.eval_strategy.value == "no"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat=1e-6"], r"command line: unknown key 'learning_rat'; did you mean learning_rate\?"),
        (["--beta=abc"], "command line: beta: 'abc' does not fit"),
        (["--max_length=12.5"], "max_length: '12.5' does not fit"),
        (["--max_length=true"], "max_length: 'true' does not fit"),
        (["--beta=null"], "beta: 'null' does not fit"),
        (["--beta"], "beta: True does not fit: --beta needs a value"),
        (["--dataset_mixer=some/folder"], "dataset_mixer: 'some/folder' does not fit: .*dictionary {key: value}$"),
        (["--loss_type=ipo"], "loss_type: 'ipo' does not fit"),
        (["--optim=adamw_troch"], "command line: optim: 'adamw_troch' .* did you mean adamw_torch"),
        (["--lr_scheduler_type=cosin"], "lr_scheduler_type: .* did you mean cosine"),
        (["--train_sampling_strategy=by_length"], "train_sampling_strategy: .* did you mean group_by_length"),
        (["--warmup_ratio=5"], r"warmup_ratio \(5\) must be in \[0, 1\)"),
        (["--warmup_ratio=abc"], "warmup_ratio: 'abc' does not fit"),
        (["--warmup_ratio=0.1", "--warmup_steps=5"], "warmup_ratio and warmup_steps are one setting"),
        (["--split_batches=true"], "split_batches was removed from transformers: set it in accelerator_config"),
        (["--accelerator_config={a: 1}"], "config.yaml: .*AcceleratorConfig.*unexpected keyword argument 'a'"),
        (["--accelerator_config=nowhere.json"], "config.yaml: .*nowhere.json"),
        (["--lora_r=0"], r"lora_r \(0\)"),
        (["--lora_dropout=1"], r"lora_dropout \(1\)"),
        (["--lora_alpha=-2"], r"lora_alpha \(-2\)"),
        (["--run_name"], "run_name"),
        (["beta=2"], "expected --key=value, found 'beta=2'"),
        (["--dataset_mixer={a:", "1.0}"], "found '1.0}'.*quote what has spaces"),
        (["--max_prompt_length=96"], r"max_prompt_length \(96\) must be positive and below max_length \(96\)"),
        (["--label_smoothing=0.5"], "label_smoothing"),
        (["--is_encoder_decoder=true"], "encoder-decoder"),
        (["--load_in_4bit"], "use_peft"),
    ],
)
def test_bad_overrides(config, argv, message):
    with pytest.raises(UserError, match=message):
        parse(config(), *argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: [1, 2]", "beta: .* does not fit"),
        ("beta: 1e999", "beta: '1e999' does not fit: .*finite"),
        ("beta: 1.0e+999", "beta: inf does not fit"),
        ("max_length: " + "9" * 5000, "not valid YAML"),
        ("run_name: yes", "run_name: True does not fit: .*quotes"),
        ("run_name: 1.10", "run_name: 1.1 does not fit"),
        ('run_name: "a\\0"', "run_name: .* holds a character"),
        ("k" * 1000 + ": 2", "unknown key 'kkk.{1,90}$"),
        ("run_name: [" + "n" * 5000 + "]", "run_name: .{1,100} does not fit"),
        ("beta: 2\nmax_length: 96\nbeta: 3", "the key 'beta' stands twice\\s+line 3"),
        ("dataset_mixer: {a: 1.0, a: 0.5}", "the key 'a' stands twice"),
        ("5: 2", "the key 5 is not text"),
        ("on: 2", "the key True is not text"),
        ("? [a]\n: 2", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("beta: !!timestamp x", "not valid YAML"),
        ("dataset_mixer: {5: 1.0}", "dataset_mixer: .* does not fit"),
        ("beta: null", "beta cannot be null"),
        ("bta: 2", "unknown key 'bta'; did you mean beta"),
        ("max_length: true", "max_length"),
        ("a: b: c", "not valid YAML"),
        ("- a\n- b", "must hold"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}/bad.yaml: .*{message}"):
        parse(str(tmp_path / "bad.yaml"))


def test_missing_yaml(fails):
    assert "nowhere.yaml: no such configuration file" in fails(run_simpo, "nowhere.yaml")


def test_help(capsys, monkeypatch):
    """How the program is started, what it says of itself, line by line, and its settings."""
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", "--help"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Train a model.\n\n    run_simpo.py mine.yaml\n")
    with pytest.raises(SystemExit) as stop:
        run_simpo()
    usage, *lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and usage == "usage: run_simpo.py [CONFIG.yaml] [--key=value | --key value] ..."
    assert lines[:4] == ["", "Train a model.", "", "    run_simpo.py mine.yaml"]
    assert any("--gamma_beta_ratio" in line for line in lines)


def test_the_last_of_an_option_given_twice_counts():
    assert split_overrides(["--beta=1", "--max-length=9", "--beta=3", "--max_length", "8"]) == {
        "beta": "3",
        "max_length": "8",
    }
