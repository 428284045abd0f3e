"""LN-DPO: DPO on log-ratios per token, as Tulu 3 and OLMo 2 were trained."""

from simpo.objectives import dpo
from simpo.objectives.base import LABEL_SMOOTHING, Objective, beta_setting

OBJECTIVE = Objective(
    name="ln_dpo",
    loss=dpo.loss,
    logps="mean",
    reference=True,
    settings=(beta_setting(5.0, dpo.PULL), LABEL_SMOOTHING),
    paper="[Tulu 3: Pushing Frontiers in Open Language Model Post-Training](https://arxiv.org/abs/2411.15124)",
)
