"""Settings of WPO training (arXiv 2406.11827), and of DPO, which is WPO without weights."""

from dataclasses import dataclass, field
from typing import Literal

from simpo.train.config import PreferenceConfig


@dataclass
class WPOConfig(PreferenceConfig):
    """transformers' TrainingArguments and WPO's own settings."""

    beta: float = field(default=0.1, metadata={"help": "Scale of the rewards: the pull towards the reference model."})
    loss_type: Literal["sigmoid"] = field(default="sigmoid", metadata={"help": "Shape of the loss."})
    use_wpo_weighting: bool = field(
        default=True, metadata={"help": "Weight each pair by how likely the policy itself would write it; false: DPO."}
    )
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference model (default: the start model)."}
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Compute the reference log-probabilities once, then train with one model."},
    )
