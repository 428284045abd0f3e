"""What an objective is: a pure function of log-probabilities, and a declaration of what it needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch


class PairOutputs(NamedTuple):
    """What the models say of B pairs; every field float32 of shape (B,) unless noted."""

    chosen_logps: torch.Tensor
    """Of the policy, per token or summed, as the objective declares; in nats."""
    rejected_logps: torch.Tensor
    chosen_lengths: torch.Tensor | None = None
    """int64: label tokens of each response."""
    rejected_lengths: torch.Tensor | None = None
    ref_chosen_logps: torch.Tensor | None = None
    """Of the reference model, for objectives that need one."""
    ref_rejected_logps: torch.Tensor | None = None
    reference_point: torch.Tensor | None = None
    """Scalar: how far the policy is from the reference on mismatched pairs, for objectives that ask for it."""
    chosen_nll: torch.Tensor | None = None
    """Scalar: the policy's cross-entropy per token over all chosen responses of the batch."""
    chosen_mean_logits: torch.Tensor | None = None
    rejected_mean_logits: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    """WPO's weights, detached, when they are asked for: (B,), or (2, B) where the objective is unpaired."""
    router_loss: torch.Tensor | None = None
    """Scalar, of mixtures of experts whose config asks for it: see `ResponseLogps`."""

    @property
    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Policy against reference, of the chosen and the rejected responses: two (B,)."""
        return self.chosen_logps - self.ref_chosen_logps, self.rejected_logps - self.ref_rejected_logps


class PreferenceLoss(NamedTuple):
    """What an objective makes of a batch of B pairs; every field float32 of shape (B,), rewards detached."""

    losses: torch.Tensor
    """(2, B) where the objective is unpaired: a loss for each chosen and each rejected response."""
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


@dataclass(frozen=True)
class Setting:
    """A setting of an objective's own: a key of the YAML and an argument of its loss."""

    name: str
    default: Any
    help: str
    kind: Any = float
    above: float = -math.inf
    """Numbers must be above this (and finite)."""
    least: float = -math.inf
    below: float = math.inf

    def check(self, value: Any) -> None:
        """Raise ValueError, naming the setting, unless a number is within its bounds."""
        if self.kind is not float or (math.isfinite(value) and value > self.above and self.least <= value < self.below):
            return
        bounds = [("above", self.above), ("at least", self.least), ("below", self.below)]
        wanted = (
            " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound)) or "a finite number"
        )
        raise ValueError(f"{self.name} ({value:g}) must be {wanted}")


@dataclass(frozen=True)
class Objective:
    """A preference objective. To add one, write a file in this folder that is called by its name and holds `OBJECTIVE`.

    The loss is before WPO's weights and without the SFT term, which the trainer adds to every objective alike.
    """

    name: str
    loss: Callable[..., PreferenceLoss]
    """A pure function of `PairOutputs` and the objective's settings, as keyword arguments."""
    logps: Literal["mean", "sum"]
    """Log-probabilities per token or of whole responses."""
    paper: str
    """Markdown link to the paper, for the model card."""
    settings: tuple[Setting, ...] = ()
    reference: bool = False
    """Whether it compares with the start model."""
    mismatched: bool = False
    """Whether it needs `PairOutputs.reference_point`, for which prompts are run with other prompts' responses."""
    unpaired: bool = False
    """Whether every response has a loss of its own."""
    metrics: Callable[..., dict[str, torch.Tensor]] | None = None
    """Arguments as of `loss`: further values to log, averaged over the batch."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of settings that all objectives share, where this one's differ."""
    check: Callable[[Any], None] | None = None
    """Takes all settings as one object; raises ValueError about what cannot be combined."""
    highest_learning_rate: float = 1e-6
    """The highest published for training all weights; far above it a run starts with a warning."""
    mistral_template: bool = False
    """Whether models whose path says "mistral" get SimPO's template in place of their own, as the original does it."""

    @property
    def tags(self) -> list[str]:
        """Hub tags; the first one names the objective."""
        return [self.name, "alignment-handbook"]

    def values(self, settings: Any) -> dict[str, Any]:
        """The objective's own settings, read from an object that has them as attributes."""
        return {setting.name: getattr(settings, setting.name) for setting in self.settings}

    def first_loss(self, settings: Any) -> float:
        """The loss of a pair whose responses are equally likely, under the policy and the reference alike."""
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.long)
        pairs = PairOutputs(zero, zero, one, one, zero, zero, reference_point=zero.sum())
        return self.loss(pairs, **self.values(settings)).losses.mean().item()


def beta_setting(default: float, help: str = "Scale of the rewards.") -> Setting:
    return Setting("beta", default, help, above=0)


LABEL_SMOOTHING = Setting("label_smoothing", 0.0, "Assumed share of wrongly ordered pairs.", least=0, below=0.5)
GAMMA_BETA_RATIO = "Target reward margin gamma divided by beta."
