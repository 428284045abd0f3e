"""CPO: DPO without a reference model, held in place by supervised fine-tuning on the chosen responses."""

import torch.nn.functional as F

from simpo.objectives.base import LABEL_SMOOTHING, Objective, PairOutputs, PreferenceLoss, beta_setting


def cpo_loss(pairs: PairOutputs, beta: float, label_smoothing: float = 0.0) -> PreferenceLoss:
    """CPO (arXiv 2401.08417, equation 3), to which `sft_weight` times the chosen responses' cross-entropy is added.

    z = beta (logp_chosen - logp_rejected), of whole responses
    -(1 - eps) log sigma(z) - eps log sigma(-z),  eps = label_smoothing
    """
    z = beta * (pairs.chosen_logps - pairs.rejected_logps)
    losses = -F.logsigmoid(z) * (1 - label_smoothing) - F.logsigmoid(-z) * label_smoothing
    return PreferenceLoss(losses, beta * pairs.chosen_logps.detach(), beta * pairs.rejected_logps.detach())


OBJECTIVE = Objective(
    name="cpo",
    loss=cpo_loss,
    logps="sum",
    settings=(beta_setting(0.1), LABEL_SMOOTHING),
    defaults={"sft_weight": 1.0},
    paper="[Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation]"
    "(https://arxiv.org/abs/2401.08417)",
)
