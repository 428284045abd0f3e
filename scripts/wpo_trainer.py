"""WPO: DPO whose pairs are weighted by how likely they are under the current policy."""

from simpo.train.trainer import PreferenceTrainer
from wpo_config import WPOConfig


class WPOTrainer(PreferenceTrainer):
    """Trains with the WPO objective (arXiv 2406.11827), or DPO's (`use_wpo_weighting=False`).

    Arguments as in `PreferenceTrainer`; `ref_model` is needed unless the policy has adapters.
    """

    args: WPOConfig
