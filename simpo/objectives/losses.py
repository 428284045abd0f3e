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


def dpo_loss(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """DPO (arXiv 2305.18290, equation 7), with label smoothing (conservative DPO).

        h = (logp_chosen - logp_rejected) - (ref_chosen - ref_rejected)
        -(1 - eps) log sigma(beta h) - eps log sigma(-beta h),  eps = label_smoothing

    Args:
        chosen_logps, rejected_logps: the policy's log-probability of each whole response, (B,), in nats.
        ref_chosen_logps, ref_rejected_logps: the same of the reference model.
    """
    chosen_rewards = beta * (chosen_logps - ref_chosen_logps)
    rejected_rewards = beta * (rejected_logps - ref_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    losses = -F.logsigmoid(margins) * (1 - label_smoothing) - F.logsigmoid(-margins) * label_smoothing
    return PreferenceLoss(losses, chosen_rewards.detach(), rejected_rewards.detach())


def wpo_weights(chosen_log_weights: torch.Tensor, rejected_log_weights: torch.Tensor) -> torch.Tensor:
    """Weight of each pair under WPO (arXiv 2406.11827, section 3.2, sampled alignment): how on-policy it is.

        min(1, exp(w_chosen + w_rejected)),  w = mean over tokens of log p(y_t) - log sum_v p(v)^2

    Args:
        chosen_log_weights, rejected_log_weights: w of each response, (B,).

    Returns:
        (B,) float32 in (0, 1], without gradient.
    """
    return torch.exp(chosen_log_weights + rejected_log_weights).clamp(max=1).detach()
