"""Settings of SimPO training (arXiv 2405.14734)."""

from dataclasses import dataclass

from simpo.train.config import config_class


@dataclass
class SimPOConfig(config_class("simpo")):
    """transformers' TrainingArguments and the settings that simpo/objectives/simpo.py declares."""
