"""SLiC-HF: a hinge on whole responses' log-probabilities, beside supervised fine-tuning; no reference model."""

import torch.nn.functional as F

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, Setting


def slic_loss(pairs: PairOutputs, delta: float) -> PreferenceLoss:
    """SLiC-HF (arXiv 2305.10425), to which `sft_weight` times the chosen responses' cross-entropy is added.

    max(0, delta - logp_chosen + logp_rejected), of whole responses
    """
    losses = F.relu(delta - pairs.chosen_logps + pairs.rejected_logps)
    # in units of delta: a margin above 1 is a pair that is learned
    return PreferenceLoss(losses, pairs.chosen_logps.detach() / delta, pairs.rejected_logps.detach() / delta)


OBJECTIVE = Objective(
    name="slic",
    loss=slic_loss,
    logps="sum",
    settings=(Setting("delta", 1.0, "Margin, in nats of the whole response.", above=0),),
    defaults={"sft_weight": 1.0},
    paper="[SLiC-HF: Sequence Likelihood Calibration with Human Feedback](https://arxiv.org/abs/2305.10425)",
)
