"""R-DPO: DPO that expects a longer response to win for its length."""

from typing import Any

import torch
import torch.nn.functional as F

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, Setting, beta_setting
from simpo.objectives.dpo import PULL


def rdpo_loss(pairs: PairOutputs, beta: float, alpha: float) -> PreferenceLoss:
    """R-DPO (arXiv 2403.19159).

        -log sigma(beta (h_chosen - h_rejected) + alpha (n_chosen - n_rejected))
        h = log-ratio of policy and reference, n = tokens of the response

    The reward that is penalized by alpha n has its optimum at reward = beta h + alpha n: plus, so that a longer chosen
    response is pushed less. (Printed with minus in places, which rewards length.)
    """
    chosen, rejected = pairs.log_ratios
    margins = beta * (chosen - rejected) + alpha * (pairs.chosen_lengths - pairs.rejected_lengths)
    return PreferenceLoss(-F.logsigmoid(margins), beta * chosen.detach(), beta * rejected.detach())


def metrics(pairs: PairOutputs, **settings: Any) -> dict[str, torch.Tensor]:
    return {"lengths/margins": (pairs.chosen_lengths - pairs.rejected_lengths).float()}


OBJECTIVE = Objective(
    name="rdpo",
    loss=rdpo_loss,
    logps="sum",
    reference=True,
    settings=(
        beta_setting(0.1, PULL),
        Setting("alpha", 0.01, "Reward that a token of length stands for (negative would favour length).", least=0),
    ),
    metrics=metrics,
    paper="[Disentangling Length from Quality in Direct Preference Optimization](https://arxiv.org/abs/2403.19159)",
)
