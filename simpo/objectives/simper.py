"""SimPER: the inverse perplexity of chosen responses rises, that of rejected ones falls; nothing to tune."""

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss


def simper_loss(pairs: PairOutputs) -> PreferenceLoss:
    """SimPER (arXiv 2502.00883).

    e^logp_rejected - e^logp_chosen, log-probabilities per token; between -1 and 1, below 0 when the order is right
    """
    chosen, rejected = pairs.chosen_logps.exp(), pairs.rejected_logps.exp()
    return PreferenceLoss(rejected - chosen, chosen.detach(), rejected.detach())


OBJECTIVE = Objective(
    name="simper",
    loss=simper_loss,
    logps="mean",
    paper="[SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters]"
    "(https://arxiv.org/abs/2502.00883)",
)
