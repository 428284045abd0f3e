"""DPO: the reward is beta times the log-ratio of policy and reference, over the whole response."""

from typing import Any

import torch
import torch.nn.functional as F

from simpo.objectives.base import LABEL_SMOOTHING, Objective, PairOutputs, PreferenceLoss, beta_setting

PULL = "Scale of the rewards: the pull towards the reference model."


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


def loss(pairs: PairOutputs, **settings: Any) -> PreferenceLoss:
    return dpo_loss(
        pairs.chosen_logps, pairs.rejected_logps, pairs.ref_chosen_logps, pairs.ref_rejected_logps, **settings
    )


OBJECTIVE = Objective(
    name="dpo",
    loss=loss,
    logps="sum",
    reference=True,
    settings=(beta_setting(0.1, PULL), LABEL_SMOOTHING),
    paper="[Direct Preference Optimization: Your Language Model is Secretly a Reward Model]"
    "(https://arxiv.org/abs/2305.18290)",
)
