"""What the training and data scripts share. Importing it has no side effects."""

from .chat import apply_chat_template, resolve_chat_template
from .checkpoints import get_checkpoint
from .configs import DataArguments, H4ArgumentParser, ModelArguments
from .data import get_datasets
from .model_utils import (
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
    get_tokenizer,
    is_adapter_model,
)

__all__ = [
    "DataArguments",
    "H4ArgumentParser",
    "ModelArguments",
    "apply_chat_template",
    "get_checkpoint",
    "get_datasets",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "get_tokenizer",
    "is_adapter_model",
    "resolve_chat_template",
]
