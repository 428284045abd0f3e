"""ORPO: fine-tuning on the chosen responses, with a penalty on the rejected ones' odds; no reference model."""

from typing import Any

import torch
import torch.nn.functional as F

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, beta_setting

HIGHEST_LOGP = -1e-6  # at 0, a probability of 1, the odds are infinite


def log_odds(logps: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = e^logps; without gradient where p is 1 within 1e-6."""
    logps = logps.clamp(max=HIGHEST_LOGP)
    return logps - torch.log(-torch.expm1(logps))


def orpo_loss(pairs: PairOutputs, beta: float) -> PreferenceLoss:
    """ORPO's penalty (arXiv 2403.07691, equations 4 to 7); the cross-entropy beside it is the SFT term, of weight 1.

    -beta log sigma(log odds(chosen) - log odds(rejected)),  p = e^(log-probability per token)

    beta is the paper's lambda. The cross-entropy is that of the response (the authors' code counts the prompt's too).
    """
    margins = log_odds(pairs.chosen_logps) - log_odds(pairs.rejected_logps)
    return PreferenceLoss(
        -beta * F.logsigmoid(margins), beta * pairs.chosen_logps.detach(), beta * pairs.rejected_logps.detach()
    )


def metrics(pairs: PairOutputs, **settings: Any) -> dict[str, torch.Tensor]:
    return {"log_odds": log_odds(pairs.chosen_logps) - log_odds(pairs.rejected_logps)}


def check(settings: Any) -> None:
    if settings.sft_weight != 1:
        raise ValueError(
            f"sft_weight ({settings.sft_weight:g}) must be 1 under orpo: the penalty is made to stand beside the "
            "cross-entropy, and beta is its weight"
        )


OBJECTIVE = Objective(
    name="orpo",
    loss=orpo_loss,
    logps="mean",
    settings=(beta_setting(0.1, "Weight of the penalty: the paper's lambda."),),
    metrics=metrics,
    defaults={"sft_weight": 1.0},
    check=check,
    highest_learning_rate=8e-6,
    paper="[ORPO: Monolithic Preference Optimization without Reference Model](https://arxiv.org/abs/2403.07691)",
)
