"""RRHF: a chosen response is to be at least as likely per token as the rejected one; beside fine-tuning on it."""

import torch.nn.functional as F

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss


def rrhf_loss(pairs: PairOutputs) -> PreferenceLoss:
    """RRHF (arXiv 2304.05302) on pairs, to which `sft_weight` times the chosen responses' cross-entropy is added.

    max(0, logp_rejected - logp_chosen), per token
    """
    losses = F.relu(pairs.rejected_logps - pairs.chosen_logps)
    return PreferenceLoss(losses, pairs.chosen_logps.detach(), pairs.rejected_logps.detach())


OBJECTIVE = Objective(
    name="rrhf",
    loss=rrhf_loss,
    logps="mean",
    defaults={"sft_weight": 1.0},
    paper="[RRHF: Rank Responses to Align Language Models with Human Feedback without tears]"
    "(https://arxiv.org/abs/2304.05302)",
)
