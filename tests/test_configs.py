"""Every shipped training configuration against the published table."""

from pathlib import Path

import pytest
from trl import SFTConfig

from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
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
