"""What the training and data scripts share. Importing it has no side effects and loads nothing until it is used."""

from importlib import import_module
from typing import Any

PUBLIC = {  # name: the module it comes from
    "DataArguments": "configs",
    "H4ArgumentParser": "configs",
    "ModelArguments": "configs",
    "apply_chat_template": "chat",
    "get_checkpoint": "checkpoints",
    "get_datasets": "data",
    "get_kbit_device_map": "model_utils",
    "get_peft_config": "model_utils",
    "get_quantization_config": "model_utils",
    "get_tokenizer": "model_utils",
    "is_adapter_model": "model_utils",
    "resolve_chat_template": "chat",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name's module at its first use: scripts that only read files start without torch."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{PUBLIC[name]}", __name__), name)
