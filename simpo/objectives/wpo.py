"""WPO: DPO whose pairs are weighted by how likely they are under the current policy; weights for every objective."""

from typing import Any, Literal

import torch

from simpo.objectives import dpo
from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, Setting


def wpo_weights(chosen_log_weights: torch.Tensor, rejected_log_weights: torch.Tensor) -> torch.Tensor:
    """Weight of each pair under WPO (arXiv 2406.11827, section 3.2, sampled alignment): how on-policy it is.

        min(1, exp(w_chosen + w_rejected)),  w = mean over tokens of log p(y_t) - log sum_v p(v)^2

    Args:
        chosen_log_weights, rejected_log_weights: w of each response, (B,).

    Returns:
        (B,) float32 in (0, 1], without gradient.
    """
    return torch.exp(chosen_log_weights + rejected_log_weights).clamp(max=1).detach()


def wpo_response_weights(chosen_log_weights: torch.Tensor, rejected_log_weights: torch.Tensor) -> torch.Tensor:
    """Weight of each response, for objectives without pairs (the same paper, section 4.2).

        exp(w) divided by its mean over the batch's chosen, or rejected, responses

    Returns:
        (2, B) float32 without gradient, the chosen ones first; every row has mean 1, so equal weights change nothing.
    """
    log_weights = torch.stack([chosen_log_weights, rejected_log_weights]).detach()
    return log_weights.softmax(dim=1) * log_weights.shape[1]


def loss(pairs: PairOutputs, loss_type: Literal["sigmoid"] = "sigmoid", **settings: Any) -> PreferenceLoss:
    return dpo.loss(pairs, **settings)


OBJECTIVE = Objective(
    name="wpo",
    loss=loss,
    logps="sum",
    reference=True,
    settings=(
        *dpo.OBJECTIVE.settings,
        Setting("loss_type", "sigmoid", "Shape of the loss.", kind=Literal["sigmoid"]),
    ),
    defaults={"use_wpo_weighting": True},
    paper="[WPO: Enhancing RLHF with Weighted Preference Optimization](https://arxiv.org/abs/2406.11827)",
)
