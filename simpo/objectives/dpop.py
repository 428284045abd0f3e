"""DPOP (DPO-positive): DPO that also keeps chosen responses as likely as they were, for pairs that differ little."""

import torch.nn.functional as F

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, Setting, beta_setting
from simpo.objectives.dpo import PULL


def dpop_loss(pairs: PairOutputs, beta: float, dpop_lambda: float) -> PreferenceLoss:
    """DPOP (arXiv 2402.13228, equation 3).

    -log sigma(beta (h_chosen - h_rejected - dpop_lambda max(0, -h_chosen)))
    h = log-ratio of policy and reference, of whole responses
    """
    chosen, rejected = pairs.log_ratios
    margins = beta * (chosen - rejected - dpop_lambda * F.relu(-chosen))  # relu: no slope at 0, where all pairs start
    return PreferenceLoss(-F.logsigmoid(margins), beta * chosen.detach(), beta * rejected.detach())


OBJECTIVE = Objective(
    name="dpop",
    loss=dpop_loss,
    logps="sum",
    reference=True,
    settings=(
        beta_setting(0.3, PULL),
        Setting("dpop_lambda", 50.0, "Weight of the penalty on chosen responses that became less likely.", least=0),
    ),
    paper="[Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive](https://arxiv.org/abs/2402.13228)",
)
