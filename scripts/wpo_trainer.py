"""WPO: DPO whose pairs are weighted by how likely they are under the current policy."""

import math

from simpo.objectives.losses import PreferenceLoss, dpo_loss
from simpo.train.trainer import PairOutputs, PreferenceTrainer
from wpo_config import WPOConfig


class WPOTrainer(PreferenceTrainer):
    """Trains with the WPO objective (arXiv 2406.11827), or DPO's (`use_wpo_weighting=False`).

    Arguments as in `PreferenceTrainer`; `ref_model` is needed unless the policy has adapters.
    """

    args: WPOConfig
    average_log_prob = False
    needs_reference = True
    tags = ["wpo", "alignment-handbook"]
    paper = "[WPO: Enhancing RLHF with Weighted Preference Optimization](https://arxiv.org/abs/2406.11827)"

    def pair_loss(self, pairs: PairOutputs) -> PreferenceLoss:
        return dpo_loss(
            pairs.chosen_logps,
            pairs.rejected_logps,
            pairs.ref_chosen_logps,
            pairs.ref_rejected_logps,
            beta=self.args.beta,
            label_smoothing=self.args.label_smoothing,
        )

    def expected_first_loss(self) -> float:
        return math.log(2)
