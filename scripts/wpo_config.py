"""Settings of WPO training (arXiv 2406.11827), and of DPO, which is WPO without weights."""

from dataclasses import dataclass

from simpo.train.config import config_class


@dataclass
class WPOConfig(config_class("wpo")):
    """transformers' TrainingArguments and the settings that simpo/objectives/wpo.py declares."""
