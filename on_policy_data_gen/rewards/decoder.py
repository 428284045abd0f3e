"""Reward models that are decoders: the answers to a prompt stand in one row after it, and none sees another.

A token's hidden state depends on what is before it in its own conversation, and on nothing else. So a prompt's is the
same for all its answers, and a row of [prompt | answer | answer ...] in which each answer sees the prompt and itself,
at the positions it has in its conversation, is exact: the attention is that of training (simpo/logps/attention.py).
"""

from collections.abc import Sequence
from itertools import groupby

import torch

from rewards.base import Options, Unit
from rewards.batches import Encoded, make_batches, shared_length
from rewards.checkpoint import Checkpoint
from simpo.console import UserError, warn
from simpo.logps.attention import attending_by_spans, attention_name, branches_of
from simpo.logps.branches import Rows
from simpo.logps.families import FAMILIES


class Decoder(Checkpoint):
    """A model whose score comes from the hidden states at some places of a conversation, if it is a decoder that can
    attend within such rows. The first prompt is tried both ways; else every conversation has a row of its own.
    """

    def __init__(self, argument: str, options: Options):
        super().__init__(argument, options)
        self.apart, self.tried = "", False
        """Why the answers do not share their prompt; whether that was tried."""
        config = self.config
        if options.shared_prompt is False:
            self.keep_apart("shared_prompt is false")
        elif config.model_type not in FAMILIES or getattr(config, "use_bidirectional_attention", False):
            self.keep_apart(f"{config.model_type} models are not known as decoders that can share a prompt")

    def keep_apart(self, why: str) -> None:
        """Have every conversation in a row of its own from now on.

        Raises:
            UserError: shared prompts were asked for.
        """
        if self.options.shared_prompt:
            raise UserError(f"shared_prompt: not with {self.argument}: {why}")
        self.apart = why

    @property
    def shares_prompts(self) -> bool:
        return not self.apart

    def how(self) -> str:
        return f"every answer in a row of its own ({self.apart})" if self.apart else "the answers to a prompt share it"

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        super().load(device, dtype)
        backbone = self.model.base_model
        attention = attention_name(backbone.config)
        if self.apart:
            return
        if branches_of(attention) is None or not backbone._can_set_attn_implementation():
            self.keep_apart(f"its attention ({attention}) cannot")
        elif not self.is_known():
            self.keep_apart(f"{type(self.model).__name__} has a forward of its own")

    def is_known(self) -> bool:
        """Whether `places` and `scores` say what the loaded model does."""
        return True

    def places(self, ids: list[int]) -> list[int]:
        """Where the model reads a conversation, K places."""
        raise NotImplementedError

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values (B,) from the backbone's last hidden states there, (B, K, hidden)."""
        raise NotImplementedError

    @torch.inference_mode()
    def values(self, batch: Sequence[tuple[Unit, Encoded]]) -> list[float]:
        """Run one batch, in which the answers to a prompt follow each other."""
        groups = [[encoded.inputs["input_ids"] for _, encoded in some] for _, some in groupby(batch, prompt_of)]
        several = next((group for group in groups if len(group) > 1), None)
        if several is not None and not self.apart and not self.tried:
            self.try_sharing(several)
        if several is not None and not self.apart:
            return self.scores(self.hidden(groups)).float().tolist()
        found: dict[int, float] = {}  # by position: apart they may be more than the budget
        budget = self.budget(self.model.device.type)
        for some in make_batches([encoded.length for _, encoded in batch], budget):
            found |= zip(some, super().values([batch[position] for position in some]), strict=True)
        return [found[position] for position in range(len(batch))]

    def try_sharing(self, group: Sequence[list[int]]) -> None:
        """Compare what is read of the conversations of one prompt with the same of each alone.

        Allowed is a relative difference of 0.001 in float32 on a CPU, else of 0.1: about three times the rounding of
        bf16 after 30 layers (SmolLM2 135M: 0.035 at most). An answer that sees another is off by more than 0.2.
        """
        device, backbone = self.model.device, self.model.base_model
        alone = []
        for ids in group:
            hidden = backbone(input_ids=torch.tensor([ids], device=device), use_cache=False).last_hidden_state
            alone.append(hidden[0, self.places(ids)].float())
        expected = torch.stack(alone)
        difference = (self.hidden([group]).float() - expected).norm(dim=-1) / expected.norm(dim=-1)
        exact = device.type == "cpu" and backbone.dtype == torch.float32
        self.tried = True
        if difference.nan_to_num(torch.inf).max() > (1e-3 if exact else 0.1):  # no number is a difference too
            why = "it gives other hidden states when they do (has its forward changed?)"
            self.keep_apart(why)
            warn(f"scoring: every answer in a row of its own after all: {why}")

    def hidden(self, groups: Sequence[Sequence[list[int]]]) -> torch.Tensor:
        """What is read (B, K, hidden) of B conversations, those of one prompt together, in one row without padding."""
        ids: list[int] = []
        positions: list[int] = []
        spans, places = [], []
        for group in groups:
            shared, start = shared_length(group), len(ids)
            spans.append((shared, *(len(conversation) - shared for conversation in group)))
            ids += group[0][:shared]
            positions += range(shared)
            for conversation in group:
                answer = len(ids) - shared
                places.append([(start if i < shared else answer) + i for i in self.places(conversation)])
                ids += conversation[shared:]
                positions += range(shared, len(conversation))
        device, backbone = self.model.device, self.model.base_model
        row = torch.tensor([ids], device=device)
        with attending_by_spans(backbone, Rows([spans], len(ids), device)):
            hidden = backbone(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
            ).last_hidden_state
        return hidden[0, torch.tensor(places, device=device)]


def prompt_of(item: tuple[Unit, Encoded]) -> object:
    return item[0][0]
