"""AlphaPO: SimPO with a reward of another shape, which `alpha` bends."""

import torch
import torch.nn.functional as F

from simpo.objectives.base import GAMMA_BETA_RATIO, Objective, PairOutputs, PreferenceLoss, Setting, beta_setting


def bent(logps: torch.Tensor, alpha: float) -> torch.Tensor:
    """(1 - p^-alpha) / alpha of p = e^logps, and its limit log p at alpha = 0."""
    return -torch.expm1(-alpha * logps) / alpha if alpha else logps


def alphapo_loss(pairs: PairOutputs, beta: float, gamma_beta_ratio: float, alpha: float) -> PreferenceLoss:
    """AlphaPO (arXiv 2501.03884), with the margin gamma written as beta * gamma_beta_ratio.

    -log sigma(beta (r_chosen - r_rejected - gamma_beta_ratio))
    r = (1 - p^-alpha) / alpha,  p = e^(log-probability per token)
    """
    chosen, rejected = bent(pairs.chosen_logps, alpha), bent(pairs.rejected_logps, alpha)
    losses = -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))
    return PreferenceLoss(losses, beta * chosen.detach(), beta * rejected.detach())


OBJECTIVE = Objective(
    name="alphapo",
    loss=alphapo_loss,
    logps="mean",
    settings=(
        beta_setting(2.5),
        Setting("gamma_beta_ratio", 0.1, GAMMA_BETA_RATIO, least=0),
        Setting("alpha", 0.25, "Shape of the reward; 0 is SimPO."),
    ),
    paper="[AlphaPO: Reward Shape Matters for LLM Alignment](https://arxiv.org/abs/2501.03884)",
)
