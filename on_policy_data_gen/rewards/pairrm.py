"""PairRM as a native class: the checkpoint's own tensor names, no code from the model's repository."""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel, PretrainedConfig

from conversations import Prompt
from rewards.base import CannotScore, Unit
from rewards.batches import Encoded
from rewards.checkpoint import CUT, Checkpoint
from simpo.console import UserError


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


class PairRMSource(Checkpoint):
    """llm-blender/PairRM and PairRM-hf: every response against every other, both ways round.

    score_i = mean over all n responses j of (L_ij - L_ji), with L_ij the logit that i, put first, beats j (0 for
    i = j); both orders together cancel the model's preference for a place. (Jiang et al. 2023, section 3.3.)
    """

    name = "pairrm"
    model_class = PairRM
    source_tokens, pair_tokens = 1224, 2048  # longest source; longest source and two candidates together
    markers = ("<|source|>", "<|candidate1|>", "<|candidate2|>")

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return bool({"ranker_type", "cand1_prefix_id"} & config.keys())

    def read_model_config(self, raw: dict[str, Any]) -> PretrainedConfig:
        """The config with the ids of the markers; llm-blender/PairRM's config.json only names the backbone."""
        config = AutoConfig.from_pretrained(raw["model_name"] if "ranker_type" in raw else self.argument)
        ids = [self.tokenizer.get_vocab().get(marker) for marker in self.markers]
        if None in ids:
            raise UserError(f"reward_model: the tokenizer of {self.argument} lacks PairRM's markers {self.markers}")
        config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id = ids
        size = len(self.tokenizer)
        config.vocab_size = max(config.vocab_size, size) if "n_tasks" in config.to_dict() else size
        config.n_tasks = config.to_dict().get("n_tasks", 1)
        return config

    def check(self) -> None:
        if self.options.max_length is not None:
            raise UserError("max_length: PairRM cuts texts by rules of its own")
        if self.options.shared_prompt:
            raise UserError("shared_prompt: PairRM reads a prompt with two responses at a time")

    def probe(self) -> None:
        """Everything fits: see `encode`."""

    def units(self, prompt: Prompt, responses: Sequence[str], columns: dict[str, Any] | None = None) -> list[Unit]:
        return [(prompt, a, b) for a, b in permutations(responses, 2)]

    def encode(self, unit: Unit) -> Encoded:
        prompt, *candidates = unit
        if not isinstance(prompt, str):
            raise CannotScore("PairRM has no chat template, and the prompt several messages")
        source, cut = self.segment(self.markers[0], prompt, self.source_tokens)
        room = (self.pair_tokens - len(source)) // 2
        ids = list(source)
        for marker, text in zip(self.markers[1:], candidates, strict=True):
            segment, shortened = self.segment(marker, text, room)
            ids, cut = ids + segment, cut or shortened
        return Encoded({"input_ids": ids}, (CUT,) if cut else ())

    def segment(self, marker: str, text: str, limit: int) -> tuple[list[int], bool]:
        """[CLS] marker text [SEP], the text cut to fit the limit; and whether it was cut."""
        text = self.guard.protect(text.replace(self.tokenizer.sep_token, " "))
        ids = self.guard.ids(marker + text)
        kept = [self.tokenizer.cls_token_id, *ids[: limit - 2], self.tokenizer.sep_token_id]
        return kept, len(ids) > limit - 2

    def combine(self, values: Sequence[float | None]) -> list[float | None]:
        count = (1 + math.isqrt(1 + 4 * len(values))) // 2  # n (n - 1) values
        if None in values:
            return [None] * count
        rest = iter(values)
        logits = [[0.0 if i == j else next(rest) for j in range(count)] for i in range(count)]
        # an exact sum: responses with the same text get the same score
        return [math.fsum(logits[i][j] - logits[j][i] for j in range(count)) / count for i in range(count)]

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs)


SOURCE = PairRMSource
