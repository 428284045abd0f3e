"""ArmoRM and PairRM as native classes: the checkpoints' own tensor names, no code from the model's repository."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel
from transformers.utils import ModelOutput

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
        rewards = self.regression_layer(hidden[rows, last].float())
        gating = self.gating(hidden[rows, gating_position(input_ids, self.gating_pattern)].float())
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


class PairRM(DebertaV2PreTrainedModel):
    """Pairwise ranker (Jiang et al. 2023, "LLM-Blender", section 3): is the first candidate better than the second?

    The source and both candidates are read together; the difference of two scalars, computed from the embeddings of
    the markers in front of the source and of each candidate, is the logit.
    """

    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        size = config.hidden_size
        # dropout has no weights, but its places number the checkpoint's tensors (head_layer.1, head_layer.4)
        self.head_layer = nn.Sequential(
            nn.Dropout(0.0), nn.Linear(2 * size, size), nn.Tanh(), nn.Dropout(0.0), nn.Linear(size, config.n_tasks)
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B,) that the first candidate is better, of token ids (B, T) that hold each marker once."""
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        config = self.config
        source, first, second = (
            hidden[rows, (input_ids == marker).long().argmax(dim=1)]
            for marker in (config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id)
        )
        logits = self.head_layer(torch.cat([source, first], -1)) - self.head_layer(torch.cat([source, second], -1))
        return logits.float().mean(dim=-1)
