"""The names that code written for the original imports from its `alignment` package; all of them live in `simpo`."""

from importlib import import_module
from typing import Any

PUBLIC = {  # name: the module it comes from
    "DataArguments": "simpo.config",
    "H4ArgumentParser": "simpo.config",
    "ModelArguments": "simpo.config",
    "apply_chat_template": "simpo.chat.format",
    "get_checkpoint": "simpo.train.checkpoints",
    "get_datasets": "simpo.data.load",
    "get_kbit_device_map": "simpo.train.model",
    "get_peft_config": "simpo.train.model",
    "get_quantization_config": "simpo.train.model",
    "get_tokenizer": "simpo.train.model",
    "is_adapter_model": "simpo.train.weights",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name's module at its first use."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)
