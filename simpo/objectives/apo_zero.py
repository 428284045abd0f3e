"""APO-zero: chosen responses become likelier and rejected ones less likely, each by itself: for chosen responses that
are better than what the model writes."""

import torch

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, beta_setting
from simpo.objectives.dpo import PULL

PAPER = "[Anchored Preference Optimization and Contrastive Revisions](https://arxiv.org/abs/2408.06266)"


def apo_zero_loss(pairs: PairOutputs, beta: float) -> PreferenceLoss:
    """APO-zero (arXiv 2408.06266, equation 7).

    1 - sigma(beta h_chosen) + sigma(beta h_rejected),  h = log-ratio of policy and reference, of whole responses
    """
    chosen, rejected = (beta * ratio for ratio in pairs.log_ratios)
    return PreferenceLoss(torch.sigmoid(-chosen) + torch.sigmoid(rejected), chosen.detach(), rejected.detach())


OBJECTIVE = Objective(
    name="apo_zero", loss=apo_zero_loss, logps="sum", reference=True, settings=(beta_setting(0.1, PULL),), paper=PAPER
)
