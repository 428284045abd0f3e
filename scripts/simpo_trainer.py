"""SimPO: the reward is the policy's own log-probability per token; no reference model."""

import torch

from simpo.objectives.losses import PreferenceLoss, simpo_loss
from simpo.train.trainer import PairOutputs, PreferenceTrainer
from simpo_config import SimPOConfig


class SimPOTrainer(PreferenceTrainer):
    """Trains with the SimPO objective (arXiv 2405.14734); arguments as in `PreferenceTrainer`."""

    args: SimPOConfig
    average_log_prob = True
    tags = ["simpo", "alignment-handbook"]
    paper = "[SimPO: Simple Preference Optimization with a Reference-Free Reward](https://arxiv.org/abs/2405.14734)"

    def simpo_loss(self, policy_chosen_logps: torch.Tensor, policy_rejected_logps: torch.Tensor) -> PreferenceLoss:
        """(losses, chosen_rewards, rejected_rewards), each (B,), of log-probabilities per token (B,)."""
        args = self.args
        return simpo_loss(
            policy_chosen_logps,
            policy_rejected_logps,
            beta=args.beta,
            gamma_beta_ratio=args.gamma_beta_ratio,
            label_smoothing=args.label_smoothing,
            loss_type=args.loss_type,
        )

    def pair_loss(self, pairs: PairOutputs) -> PreferenceLoss:
        return self.simpo_loss(pairs.chosen_logps, pairs.rejected_logps)

    def expected_first_loss(self) -> float:
        equal = torch.zeros(1)
        return self.simpo_loss(equal, equal).losses.item()
