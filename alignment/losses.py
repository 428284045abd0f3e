"""The objectives, as pure functions of log-probabilities."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F


class PreferenceLoss(NamedTuple):
    """What an objective makes of a batch of B pairs; every field float32 of shape (B,), rewards detached."""

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


def simpo_loss(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    beta: float,
    gamma_beta_ratio: float,
    label_smoothing: float = 0.0,
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
) -> PreferenceLoss:
    """SimPO (arXiv 2405.14734, equation 6), with the margin gamma written as beta * gamma_beta_ratio.

        h = (logp_chosen - logp_rejected) - gamma_beta_ratio
        sigmoid: -(1 - eps) log sigma(beta h) - eps log sigma(-beta h),  eps = label_smoothing
        hinge:   max(0, 1 - beta h)

    Args:
        chosen_logps, rejected_logps: log-probability of each response divided by its length, (B,), in nats per token.
    """
    h = chosen_logps - rejected_logps - gamma_beta_ratio
    if loss_type == "hinge":
        losses = F.relu(1 - beta * h)
    else:
        losses = -F.logsigmoid(beta * h) * (1 - label_smoothing) - F.logsigmoid(-beta * h) * label_smoothing
    return PreferenceLoss(losses, beta * chosen_logps.detach(), beta * rejected_logps.detach())
