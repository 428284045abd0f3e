"""The gradients of a run's first step, tensor by tensor, as Adam's first moments keep them: (1 - beta1) times each."""

from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_optimizer_state
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

FILE = "gradients.safetensors"


class FirstGradients(TrainerCallback):
    """Writes them into the run's folder, put together from the parts that the processes have."""

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module, optimizer: Any, **kwargs: Any
    ) -> None:
        if state.global_step > 1:
            return
        found = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                zero3 = args.deepspeed_plugin is not None
                moment = (
                    safe_get_full_optimizer_state(weight, "exp_avg") if zero3 else optimizer.state[weight]["exp_avg"]
                )
                moment = moment.full_tensor() if isinstance(moment, DTensor) else moment
                found[name] = moment.detach().float().clone() / (1 - args.adam_beta1)
        if args.process_index == 0:
            save_file(found, Path(args.output_dir) / FILE)
