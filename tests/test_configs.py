"""Every shipped file against the published table, and the parser's rules."""

import os
import re
import sys
from pathlib import Path

import pytest
from trl import SFTConfig

from run_simpo import main as run_simpo
from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.config.reading import split_overrides
from simpo.console import UserError
from simpo.train.run import PAPER_CONFIGS
from simpo_config import SimPOConfig
from wpo_config import WPOConfig

ROOT = Path(__file__).resolve().parent.parent
UF = "HuggingFaceH4/ultrafeedback_binarized"
LLAMA3 = "meta-llama/Meta-Llama-3-8B-Instruct"
# model, data, beta, gamma/beta, learning rate, max_length, max_prompt_length
SIMPO = {
    "mistral-7b-base-simpo": ("alignment-handbook/zephyr-7b-sft-full", UF, 2.0, 0.8, 3e-7, 1024, 512),
    "mistral-7b-instruct-simpo": (
        "mistralai/Mistral-7B-Instruct-v0.2", "princeton-nlp/mistral-instruct-ultrafeedback", 2.5, 0.1, 5e-7, 2048, 1800
    ),
    "llama-3-8b-base-simpo": ("princeton-nlp/Llama-3-Base-8B-SFT", UF, 2.0, 0.5, 6e-7, 2048, 1800),
    "llama-3-8b-instruct-simpo": (LLAMA3, "princeton-nlp/llama3-ultrafeedback", 2.5, 0.55, 1e-6, 2048, 1800),
    "llama-3-8b-instruct-simpo-v2": (LLAMA3, "princeton-nlp/llama3-ultrafeedback-armorm", 10, 0.3, 1e-6, 2048, 1800),
    "gemma-2-9b-it-simpo": (
        "google/gemma-2-9b-it", "princeton-nlp/gemma2-ultrafeedback-armorm", 10, 0.5, 8e-7, 2048, 1800
    ),
}  # fmt: skip
FIRST_LOSS = [1.784, 0.826, 1.313, 1.600, 3.049, 5.007]


@pytest.fixture(autouse=True)
def _bf16_everywhere(monkeypatch):
    """The shipped files ask for bf16 and wandb; neither a GPU nor wandb is needed to read them."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def parse(*argv: str, config=SimPOConfig):
    return H4ArgumentParser((ModelArguments, DataArguments, config)).parse(list(argv), {"use_cpu": True})


@pytest.mark.parametrize("name", SIMPO)
def test_simpo_configs_are_the_published_ones(name):
    model, data, args = parse(f"{ROOT}/training_configs/{name}.yaml")
    splits = ["train_prefs", "test_prefs"] if data.dataset_mixer == {UF: 1.0} else ["train", "test"]
    found = (
        model.model_name_or_path, next(iter(data.dataset_mixer)), args.beta, args.gamma_beta_ratio, args.learning_rate,
        args.max_length, args.max_prompt_length,
    )  # fmt: skip
    assert found == SIMPO[name]
    assert set(data.dataset_mixer.values()) == {1.0} and data.dataset_splits == splits
    gemma = name.startswith("gemma")
    assert model.attn_implementation == ("eager" if gemma else "flash_attention_2")
    assert data.chat_template == ("gemma2" if gemma else None)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 4 == 128
    assert (args.per_device_eval_batch_size, args.logging_steps, args.num_train_epochs) == (4, 5, 1)
    check_common(model, data, args)
    assert (args.eval_steps, args.output_dir) == (400, f"outputs/{name}")


def check_common(model, data, args):
    assert model.torch_dtype is None and not model.use_peft
    assert data.preprocessing_num_workers == 12
    assert args.bf16 and args.gradient_checkpointing and args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert (args.optim, args.lr_scheduler_type, args.warmup_steps, args.seed) == ("adamw_torch", "cosine", 0.1, 42)
    assert args.output_dir.startswith("outputs/")
    saving = (10000, 1, []) if args.output_dir.endswith("-wpo") else (1000000, 20, ["wandb"])
    assert (args.save_steps, args.save_total_limit, args.report_to) == saving


def test_step_zero_losses_of_the_paper():
    import torch

    from simpo.objectives.losses import simpo_loss

    zero = torch.zeros(1)
    for (*_, beta, ratio, _lr, _l, _p), expected in zip(SIMPO.values(), FIRST_LOSS, strict=True):
        assert simpo_loss(zero, zero, beta, ratio).losses.item() == pytest.approx(expected, abs=1e-3)


def test_every_shipped_preference_config_is_known_as_the_papers():
    shipped = {path.stem for path in (ROOT / "training_configs").rglob("*.yaml")}
    assert len(shipped) > 12 and all(PAPER_CONFIGS.fullmatch(name) for name in shipped)
    assert not any(PAPER_CONFIGS.fullmatch(name) for name in ("config", "mistral-7b", "my-mistral"))


@pytest.mark.parametrize(
    ("name", "base", "rate", "epochs", "lengths", "output"),
    [
        ("mistral", "HuggingFaceH4/mistral-7b-sft-beta", 5e-7, 1, (1024, 512), "zephyr-7b-wpo"),
        ("llama3_instruct", LLAMA3, 1e-6, 2, (2048, 1800), "llama-8b-instruct-wpo"),
    ],
)
def test_wpo_configs(name, base, rate, epochs, lengths, output):
    model, data, args = parse(f"{ROOT}/training_configs/{name}.yaml", config=WPOConfig)
    assert (args.beta, args.learning_rate, args.num_train_epochs, args.use_wpo_weighting) == (0.01, rate, epochs, True)
    assert model.model_name_or_path == base and data.dataset_mixer == {UF: 1.0}
    assert data.dataset_splits == ["train_prefs", "test_prefs"]
    assert (args.max_length, args.max_prompt_length) == lengths
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 8 == 128
    assert (args.per_device_eval_batch_size, args.logging_steps) == (8, 10)
    check_common(model, data, args)
    assert (args.eval_steps, args.output_dir) == (10000, f"outputs/{output}")


@pytest.mark.parametrize(("simpo", "rate"), zip(SIMPO, [5e-7, 5e-7, 5e-7, 7e-7, 3e-7, 5e-7], strict=True))
def test_dpo_configs(simpo, rate):
    name = simpo.replace("simpo", "dpo")
    model, data, args = parse(f"{ROOT}/training_configs/dpo/{name}.yaml", config=WPOConfig)
    assert (args.beta, args.learning_rate, args.use_wpo_weighting) == (0.01, rate, False)
    base = SIMPO[simpo]
    assert (model.model_name_or_path, next(iter(data.dataset_mixer))) == base[:2]
    assert (args.max_length, args.max_prompt_length) == base[-2:]
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 4 == 128
    check_common(model, data, args)
    assert (args.eval_steps, args.output_dir) == (400, f"outputs/{name}")
    # the model's own template takes neither a system message nor an answer alone, as DPO's formatting has them
    assert data.chat_template == {"mistral-7b-instruct-dpo": "mistral", "gemma-2-9b-it-dpo": "gemma2"}.get(name)


def test_sft_config():
    model, data, args = parse(f"{ROOT}/training_configs/llama-3-8b-base-sft.yaml", config=SFTConfig)
    assert (model.model_name_or_path, model.torch_dtype) == ("meta-llama/Meta-Llama-3-8B", "bfloat16")
    assert data.dataset_mixer == {"HuggingFaceH4/ultrachat_200k": 1.0}
    assert data.dataset_splits == ["train_sft", "test_sft"] and data.chat_template == "llama3"
    assert (args.learning_rate, args.max_length, args.num_train_epochs, args.bf16) == (2e-5, 2048, 1, True)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 4)
    assert (args.lr_scheduler_type, args.warmup_steps) == ("cosine", 0.1)
    assert (args.packing, args.packing_strategy) == (True, "wrapped")
    assert (args.eval_strategy, args.eval_steps, args.save_total_limit) == ("steps", 200, 1)


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("deepspeed_zero3", "DEEPSPEED", 4),
        ("deepspeed_zero3_8gpu", "DEEPSPEED", 8),
        ("deepspeed_zero3_cpu", "DEEPSPEED", 2),
        ("fsdp", "FSDP", 8),
        ("fsdp2", "FSDP", 8),
        ("multi_gpu", "MULTI_GPU", 8),
        ("deepspeed_zero3_multinode", "DEEPSPEED", 16),
        ("fsdp2_multinode", "FSDP", 16),
    ],
)
def test_accelerate_configs(name, kind, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(f"{ROOT}/accelerate_configs/{name}.yaml")
    assert (str(config.distributed_type).split(".")[-1], config.num_processes) == (kind, processes)
    assert config.mixed_precision == "bf16" and config.use_cpu == name.endswith("cpu")
    several = name.endswith("multinode")
    assert (config.num_machines, config.main_process_port) == ((2, 29500) if several else (1, 0))
    if several:  # nodes that each choose a port, or a rendezvous of one node, never meet
        assert config.rdzv_backend == "c10d" and config.same_network and config.main_process_ip
    if kind == "DEEPSPEED":
        settings = config.deepspeed_config
        assert settings["zero_stage"] == 3 and settings["zero3_init_flag"] and settings["zero3_save_16bit_model"]
        assert not several or settings["deepspeed_multinode_launcher"] == "standard"
        assert settings["offload_optimizer_device"] == settings["offload_param_device"] == "none"
    if kind == "FSDP":
        settings = config.fsdp_config
        assert settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
        assert settings.get("fsdp_sharding_strategy") == "FULL_SHARD" or settings["fsdp_reshard_after_forward"] is True
    if name == "fsdp":
        assert settings["fsdp_state_dict_type"] == "SHARDED_STATE_DICT" and settings["fsdp_forward_prefetch"] is True


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
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        run_simpo()
    assert stop.value.code == 0 and "--gamma_beta_ratio" in capsys.readouterr().out


def test_the_last_of_an_option_given_twice_counts():
    assert split_overrides(["--beta=1", "--max-length=9", "--beta=3", "--max_length", "8"]) == {
        "beta": "3",
        "max_length": "8",
    }
