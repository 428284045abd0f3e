"""What becomes of a loaded model before it is trained: adapters, no dropout."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from simpo.console import UserError
from simpo.train.config import PreferenceConfig


def prepare_policy(model: PreTrainedModel, args: PreferenceConfig, peft_config: Any | None) -> torch.nn.Module:
    """Wrap the policy in new adapters where asked for, and turn its dropout off."""
    if model.config.is_encoder_decoder:
        raise ValueError("encoder-decoder models are not supported")
    if getattr(model.config, "output_router_logits", False):
        check_router_loss(model.config, args)
    if peft_config is not None:
        from peft import get_peft_model, prepare_model_for_kbit_training

        if getattr(model, "is_quantized", False):
            model = prepare_model_for_kbit_training(
                model, args.gradient_checkpointing, args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            )
        elif args.gradient_checkpointing:
            model.enable_input_require_grads()  # or nothing flows back into checkpointed layers
        model = get_peft_model(model, peft_config)
    if args.disable_dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():  # applied as functions: attention_dropout, residual_dropout, ...
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
    return model


def check_router_loss(config: PretrainedConfig, args: PreferenceConfig) -> None:
    """Refuse settings under which a mixture of experts' router loss would be without effect.

    Raises:
        UserError: the config does not weight it, or the gradients do not reach it.
    """
    if getattr(config, "router_aux_loss_coef", None) is None:
        raise UserError(
            f"output_router_logits: {config.model_type} has no router_aux_loss_coef to weight the router's loss with: "
            "set output_router_logits to false in the model's config.json"
        )
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise UserError(
            "gradient_checkpointing_kwargs: under use_reentrant: true the router's loss that the config asks for "
            "(output_router_logits) has no gradient: set use_reentrant: false"
        )
