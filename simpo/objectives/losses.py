"""The names under which code outside finds the objectives' functions of plain tensors."""

from simpo.objectives.base import PreferenceLoss
from simpo.objectives.dpo import dpo_loss
from simpo.objectives.simpo import simpo_loss
from simpo.objectives.wpo import wpo_weights

__all__ = ["PreferenceLoss", "dpo_loss", "simpo_loss", "wpo_weights"]
