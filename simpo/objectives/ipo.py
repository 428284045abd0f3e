"""IPO: the log-ratios' difference is drawn to a fixed margin, so that it cannot grow without bound."""

from simpo.objectives.base import Objective, PairOutputs, PreferenceLoss, Setting


def ipo_loss(pairs: PairOutputs, tau: float) -> PreferenceLoss:
    """IPO (arXiv 2310.12036, equation 17).

        (h_chosen - h_rejected - 1 / (2 tau))^2,  h = log-ratio of policy and reference per token

    The equation prints ratios of whole responses. Ratios per token are what implementations settled on (TRL, after its
    authors; HALOs; WPO's code): with sums, long responses decide everything.
    """
    chosen, rejected = pairs.log_ratios
    losses = (chosen - rejected - 1 / (2 * tau)).square()
    return PreferenceLoss(losses, tau * chosen.detach(), tau * rejected.detach())


OBJECTIVE = Objective(
    name="ipo",
    loss=ipo_loss,
    logps="mean",
    reference=True,
    settings=(Setting("tau", 0.1, "The target margin is 1 / (2 tau), in nats per token.", above=0),),
    paper="[A General Theoretical Paradigm to Understand Learning from Human Preferences]"
    "(https://arxiv.org/abs/2310.12036)",
)
