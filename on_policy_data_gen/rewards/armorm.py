"""ArmoRM as a native class: the checkpoint's own tensor names, no code from the model's repository."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel
from transformers.utils import ModelOutput

from rewards.base import CannotScore, Unit
from rewards.batches import Encoded
from rewards.decoder import Decoder

# <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n
LLAMA3_GATING_PATTERN = [128009, 128006, 78191, 128007, 271]


@dataclass
class ArmoRMOutput(ModelOutput):
    """Results for B conversations and K objectives, float32.

    rewards (B, K): per objective, before the verbosity correction. gating (B, K): weight of each objective, chosen by
    the prompt. score (B,): their combination.
    """

    rewards: Tensor | None = None
    gating: Tensor | None = None
    score: Tensor | None = None


class GatingNetwork(nn.Module):
    """Prompt embedding (B, hidden) to positive weights (B, K): softmax(MLP(x) / temperature) * logit_scale."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        sizes = [config.hidden_size] + [config.gating_hidden_dim] * config.gating_n_hidden
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList([*layers, nn.Linear(sizes[-1], config.num_objectives)])
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = config.gating_temperature

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return torch.softmax(self.layers[-1](x) / self.temperature, dim=-1) * self.logit_scale


class ArmoRM(LlamaPreTrainedModel):
    """Multi-objective reward model with a mixture-of-experts gate (Wang et al. 2024, "Interpretable Preferences via
    Multi-Objective Reward Modeling and Mixture-of-Experts", sections 2 and 3).

    score = sum_k gate_k (r M)_k, with r = W h(last token), M the verbosity correction, gate = g(h(gating position)).
    The gating position is where the last `gating_pattern` (the config's; Llama-3's by default) begins: the end of the
    prompt, which has not seen the answer. The heads stay float32 whatever the backbone's precision.
    """

    base_model_prefix = "model"
    _keep_in_fp32_modules_strict = ["regression_layer", "gating", "reward_transform_matrix"]

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(config.num_objectives), requires_grad=False)
        self.gating = GatingNetwork(config)
        self.gating_pattern = gating_pattern(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ArmoRMOutput:
        """Score conversations.

        Args:
            input_ids: (B, T) int64, padded on either side.
            attention_mask: (B, T), 1 at real tokens; without it, where input_ids differ from the pad token.

        Raises:
            ValueError: a conversation does not hold the gating pattern.
        """
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        # padding on the right is never looked at by what comes before it: no mask, and a faster attention
        needed = None if attention_mask[:, 0].all() else attention_mask
        hidden = self.model(input_ids=input_ids, attention_mask=needed, use_cache=False).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * attention_mask).argmax(dim=1)
        return self.heads(hidden[rows, last], hidden[rows, gating_position(input_ids, self.gating_pattern)])

    def heads(self, last: Tensor, gate: Tensor) -> ArmoRMOutput:
        """Scores from the hidden states (B, hidden) of the last token and at the gating position."""
        rewards, gating = self.regression_layer(last.float()), self.gating(gate.float())
        score = (gating * (rewards @ self.reward_transform_matrix)).sum(dim=-1)
        return ArmoRMOutput(rewards=rewards, gating=gating, score=score)


def gating_pattern(config: LlamaConfig) -> list[int]:
    return list(config.to_dict().get("gating_pattern") or LLAMA3_GATING_PATTERN)


def gating_position(input_ids: Tensor, pattern: list[int]) -> Tensor:
    """Where the last occurrence of the pattern begins in each row: (B, T) int64 -> (B,) int64.

    Raises:
        ValueError: a row does not hold the pattern.
    """
    wanted = torch.tensor(pattern, device=input_ids.device)
    if input_ids.shape[1] < len(pattern):
        raise ValueError(f"no room for the gating pattern {pattern} in {input_ids.shape[1]} tokens")
    matches = (input_ids.unfold(1, len(pattern), 1) == wanted).all(dim=-1)
    if not matches.any(dim=1).all():
        raise ValueError(f"row {int((~matches.any(dim=1)).nonzero()[0])} does not hold the gating pattern {pattern}")
    return matches.shape[1] - 1 - matches.flip(1).long().argmax(dim=1)


class ArmoRMSource(Decoder):
    """RLHFlow/ArmoRM-Llama3-8B-v0.1 and models of its kind, without their code."""

    name = "armorm"
    model_class = ArmoRM

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "llama" and {"num_objectives", "gating_hidden_dim"} <= config.keys()

    def encode(self, unit: Unit) -> Encoded:
        encoded, pattern = super().encode(unit), gating_pattern(self.config)
        ids = encoded.inputs["input_ids"]
        if not any(ids[i : i + len(pattern)] == pattern for i in range(len(ids))):
            raise CannotScore(
                f"the chat template does not write the tokens {pattern} in front of the answer, which ArmoRM's gate "
                "reads (or --max_length cut them off); set gating_pattern in its config.json"
            )
        return encoded

    def places(self, ids: list[int]) -> list[int]:
        """The gate's place is the conversation's own, in the prompt or after it: what stands there has seen what is
        before it, and nothing of the other answers."""
        return [len(ids) - 1, int(gating_position(torch.tensor([ids]), self.model.gating_pattern))]

    def scores(self, hidden: Tensor) -> Tensor:
        return self.model.heads(hidden[:, 0], hidden[:, 1]).score

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**inputs).score


SOURCE = ArmoRMSource
