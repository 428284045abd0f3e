"""SimPO: the reward is the policy's own log-probability per token; no reference model."""

import torch

from simpo.objectives.base import PairOutputs, PreferenceLoss
from simpo.objectives.simpo import simpo_loss
from simpo.train.trainer import PreferenceTrainer
from simpo_config import SimPOConfig


class SimPOTrainer(PreferenceTrainer):
    """Trains with the SimPO objective (arXiv 2405.14734); arguments as in `PreferenceTrainer`."""

    args: SimPOConfig

    def simpo_loss(self, policy_chosen_logps: torch.Tensor, policy_rejected_logps: torch.Tensor) -> PreferenceLoss:
        """(losses, chosen_rewards, rejected_rewards), each (B,), of log-probabilities per token (B,)."""
        return simpo_loss(policy_chosen_logps, policy_rejected_logps, **self.objective.values(self.args))

    def pair_loss(self, pairs: PairOutputs) -> PreferenceLoss:
        return self.simpo_loss(pairs.chosen_logps, pairs.rejected_logps)
