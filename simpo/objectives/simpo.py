"""SimPO: the reward is the policy's own log-probability per token; no reference model."""

from typing import Any, Literal

import torch
import torch.nn.functional as F

from simpo.console import warn
from simpo.objectives.base import (
    GAMMA_BETA_RATIO,
    LABEL_SMOOTHING,
    Objective,
    PairOutputs,
    PreferenceLoss,
    Setting,
    beta_setting,
)


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


def loss(pairs: PairOutputs, **settings: Any) -> PreferenceLoss:
    return simpo_loss(pairs.chosen_logps, pairs.rejected_logps, **settings)


def check(settings: Any) -> None:
    if settings.loss_type == "hinge" and settings.label_smoothing > 0:  # the original ignores it too, in silence
        warn("label_smoothing: without meaning under loss_type: hinge, ignored")


OBJECTIVE = Objective(
    name="simpo",
    loss=loss,
    logps="mean",
    settings=(
        beta_setting(2.0),
        Setting("gamma_beta_ratio", 0.25, GAMMA_BETA_RATIO, least=0),
        LABEL_SMOOTHING,
        Setting("loss_type", "sigmoid", "Shape of the loss.", kind=Literal["sigmoid", "hinge"]),
    ),
    check=check,
    mistral_template=True,
    paper="[SimPO: Simple Preference Optimization with a Reference-Free Reward](https://arxiv.org/abs/2405.14734)",
)
