"""The policy's modules without its weights, on which settings are checked before data and weights are loaded."""

import copy
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel, TrainingArguments

from simpo.config import ModelArguments
from simpo.console import UserError, warn
from simpo.train.model import get_peft_config
from simpo.train.weights import position_limit

# what the libraries raise about a setting, each in its own way
REFUSALS = (
    ValueError,
    TypeError,
    ImportError,
    NotImplementedError,
    AttributeError,
    RuntimeError,
    LookupError,
    re.error,
)


def check_positions(config: PretrainedConfig, args: TrainingArguments, name: str) -> None:
    """Refuse a max_length beyond the positions that a model has learned, or was made for (scaled as its config says).

    Models without positions (state-space models, ALiBi) have no such limit.

    Raises:
        UserError: names both numbers.
    """
    positions = position_limit(config)
    if positions is not None and args.max_length is not None and args.max_length > positions:
        raise UserError(f"max_length ({args.max_length}) is beyond the {positions} positions of {name}: lower it")


def model_on_paper(config: PretrainedConfig, attn_implementation: str | None) -> PreTrainedModel | None:
    """The model's modules on the meta device; None for a model whose code is not transformers' own.

    Raises:
        UserError: the model cannot run this attention.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    config = copy.deepcopy(config)
    try:
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        with torch.device("meta"):
            return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    except (ValueError, ImportError) as error:
        raise UserError(f"attn_implementation: {attn_implementation}: {error}") from error


def check_policy(model: PreTrainedModel, model_args: ModelArguments, args: TrainingArguments) -> None:
    """Check gradient checkpointing and the adapters' settings; the model on paper gets the adapters.

    Raises:
        UserError: names the setting.
    """
    if args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UserError(f"gradient_checkpointing: {type(model).__name__} does not support it: drop it")
    padding = getattr(args, "padding_value", None)
    if padding is not None and padding >= model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"padding_value ({padding}) is beyond the model's {model.get_input_embeddings().num_embeddings} tokens"
        )
    if model_args.use_peft:
        check_adapters(model, model_args)


def check_adapters(model: PreTrainedModel, model_args: ModelArguments) -> None:
    """Put adapters on the model on paper.

    Raises:
        UserError: a name matches no module, or PEFT refuses; names the setting.
    """
    from peft import get_peft_model

    modules = dict(model.named_modules())
    must_match("lora_modules_to_save", model_args.lora_modules_to_save, modules)
    try:
        adapted = get_peft_model(model, get_peft_config(model_args), low_cpu_mem_usage=True)
    except REFUSALS as error:
        if "dropout" in str(error):
            raise UserError(
                f"lora_dropout ({model_args.lora_dropout:g}): adapters on this model's experts cannot have any: set "
                "lora_dropout: 0, or lora_target_modules: [q_proj, k_proj, v_proj, o_proj] for attention only"
            ) from error
        given = f"lora_r {model_args.lora_r}, lora_target_modules {model_args.lora_target_modules or 'all-linear'}"
        raise UserError(f"{given}: {error}") from error
    if isinstance(model_args.lora_target_modules, list):  # less the names that PEFT translates to weights of experts
        must_match("lora_target_modules", adapted.peft_config["default"].target_modules, modules)
    if model_args.lora_target_modules in (None, "all-linear"):
        weights = [name for name, weight in adapted.named_parameters() if weight.ndim == 3]  # of all experts of a layer
        if bare := [name for name in weights if "base_layer" not in name and "lora_" not in name]:
            warn(f"the weights of the experts get no adapters and stay as they are ({len(bare)} tensors)")


def must_match(key: str, names: Iterable[str] | None, modules: Mapping[str, torch.nn.Module]) -> None:
    for name in names or []:
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            leaves = sorted({module.rpartition(".")[2] for module, part in modules.items() if not [*part.children()]})
            raise UserError(f"{key}: the model has no module {name}; it has {', '.join(leaves)}")


def check_resumed_adapters(checkpoint: str | None, model_args: ModelArguments) -> None:
    """Refuse to resume adapters of another shape, or a model with adapters without them and the other way round.

    Raises:
        UserError: names the setting.
    """
    if checkpoint is None:
        return
    file = Path(checkpoint) / "adapter_config.json"
    if file.is_file() != model_args.use_peft:
        raise UserError(
            f"use_peft: {checkpoint} was trained with{'out' * model_args.use_peft} adapters; choose another output_dir"
        )
    if not model_args.use_peft:
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    for key, name in (("lora_r", "r"), ("lora_alpha", "lora_alpha")):
        if saved[name] != getattr(model_args, key):
            raise UserError(
                f"{key}: {checkpoint} was trained with {saved[name]}, now {getattr(model_args, key)}; choose another "
                "output_dir or set it back"
            )
