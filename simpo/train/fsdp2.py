"""What FSDP2 needs beside what accelerate does for the policy."""

from dataclasses import replace

from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import PreTrainedModel


def return_as_computed(accelerator: Accelerator) -> None:
    """Leave what a model returns in the type it was computed in.

    accelerate's policy has modules return bfloat16, which log-probabilities, unlike logits, do not survive: a sum
    near -3000 is rounded to a multiple of 16. To be called before a model is prepared; nothing without FSDP2.
    """
    if accelerator.is_fsdp2 and accelerator.state.fsdp_plugin.mixed_precision_policy is not None:
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def shard_frozen(model: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    """Shard a model that has no optimizer (which `Accelerator.prepare` refuses), layer by layer as the policy.

    With `fsdp_cpu_ram_efficient_loading` only rank 0 has loaded the weights; they are broadcast here.
    """
    return fsdp2_prepare_model(accelerator, model)
