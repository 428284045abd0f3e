"""KTO: every response alone is a gain or a loss against a reference point, the policy's distance from the reference."""

from typing import Any

import torch

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, Setting, beta_setting
from simpo.objectives.dpo import PULL


def kto_loss(
    pairs: PairOutputs, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> PreferenceLoss:
    """KTO (arXiv 2402.01306, equation 8), a pair being one desirable and one undesirable response.

    desirable:   desirable_weight (1 - sigma(beta (r - z)))
    undesirable: undesirable_weight (1 - sigma(beta (z - r)))
    r = log-ratio of policy and reference of the whole response; z = `pairs.reference_point`
    """
    chosen, rejected = pairs.log_ratios
    losses = torch.stack(
        [
            desirable_weight * torch.sigmoid(-beta * (chosen - pairs.reference_point)),
            undesirable_weight * torch.sigmoid(-beta * (pairs.reference_point - rejected)),
        ]
    )
    return PreferenceLoss(losses, beta * chosen.detach(), beta * rejected.detach())


def metrics(pairs: PairOutputs, **settings: Any) -> dict[str, torch.Tensor]:
    return {"kl": pairs.reference_point}


def check(settings: Any) -> None:
    if settings.precompute_ref_log_probs:
        raise ValueError(
            "precompute_ref_log_probs: not under kto, whose mismatched pairs depend on the batch; leave it out"
        )
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(settings, key) < 2:
            raise ValueError(f"{key} must be at least 2 under kto: a pair alone has no other prompt's responses")


OBJECTIVE = Objective(
    name="kto",
    loss=kto_loss,
    logps="sum",
    reference=True,
    mismatched=True,
    unpaired=True,
    settings=(
        beta_setting(0.1, PULL),
        Setting("desirable_weight", 1.0, "Weight of the chosen responses' losses.", above=0),
        Setting("undesirable_weight", 1.0, "Weight of the rejected responses' losses.", above=0),
    ),
    metrics=metrics,
    check=check,
    highest_learning_rate=5e-6,
    paper="[KTO: Model Alignment as Prospect Theoretic Optimization](https://arxiv.org/abs/2402.01306)",
)
