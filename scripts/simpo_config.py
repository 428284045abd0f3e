"""Settings of SimPO training (arXiv 2405.14734)."""

from dataclasses import dataclass, field
from typing import Literal

from simpo.train.config import PreferenceConfig


@dataclass
class SimPOConfig(PreferenceConfig):
    """transformers' TrainingArguments and SimPO's own settings; the target margin is beta * gamma_beta_ratio."""

    beta: float = field(default=2.0, metadata={"help": "Scale of the rewards."})
    gamma_beta_ratio: float = field(default=0.25, metadata={"help": "Target reward margin gamma divided by beta."})
    loss_type: Literal["sigmoid", "hinge"] = field(default="sigmoid", metadata={"help": "Shape of the loss."})
