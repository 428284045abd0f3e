"""APO-down: both responses become less likely, the rejected one more so: for models that write better than the chosen
responses."""

import torch

from simpo.objectives.apo_zero import PAPER
from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, beta_setting
from simpo.objectives.dpo import PULL


def apo_down_loss(pairs: PairOutputs, beta: float) -> PreferenceLoss:
    """APO-down (arXiv 2408.06266, equation 8).

    sigma(beta h_chosen) + 1 - sigma(beta (h_chosen - h_rejected))
    h = log-ratio of policy and reference, of whole responses
    """
    chosen, rejected = (beta * ratio for ratio in pairs.log_ratios)
    losses = torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
    return PreferenceLoss(losses, chosen.detach(), rejected.detach())


OBJECTIVE = Objective(
    name="apo_down", loss=apo_down_loss, logps="sum", reference=True, settings=(beta_setting(0.1, PULL),), paper=PAPER
)
