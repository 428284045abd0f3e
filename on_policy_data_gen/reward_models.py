"""Reward models behind one method: score(prompt, responses) -> one number per response, higher is better.

`load_reward_model` picks the adapter from the model's config.json: ArmoRM, PairRM, or any sequence classifier with one
label. What a model runs on is a unit: one response of a prompt, or for PairRM two of them. Units of many prompts are
batched by length (`score_batches`), which is where the speed comes from.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForSequenceClassification

from reward_heads import ArmoRM, PairRM, gating_pattern
from simpo.chat.ids import ContentGuard, chat_ids
from simpo.console import UserError

Unit = tuple[str, ...]  # (prompt, response), or (prompt, first response, second response)


class RewardModel:
    """A sequence classifier with one label, on the model's chat template (or on a text pair if it has none)."""

    model_class: ClassVar[Any] = AutoModelForSequenceClassification

    def __init__(self, name: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, trust: bool = False):
        self.name, self.config, self.tokenizer, self.trust_remote_code = name, config, tokenizer, trust
        self.guard = ContentGuard(tokenizer)
        self.pad = config.get_text_config().pad_token_id
        self.model: PreTrainedModel | None = None
        tokenizer.model_max_length = 10**9  # responses are scored whole, as the original does

    def units(self, prompt: str, responses: Sequence[str]) -> list[Unit]:
        """What has to be computed to score these responses."""
        return [(prompt, response) for response in responses]

    def encode(self, unit: Unit) -> list[int]:
        """Token ids of a unit. Special tokens spelt out in its texts are tokenized as text."""
        prompt, response = unit
        if self.tokenizer.chat_template is None:
            return self.tokenizer(prompt, response, split_special_tokens=True)["input_ids"]
        return chat_ids(self.guard, [message("user", prompt), message("assistant", response)])[1]

    def combine(self, values: Sequence[float]) -> list[float]:
        """Scores of the responses from the values of their units, in the order of `units`."""
        return list(values)

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the weights (safetensors only).

        Raises:
            UserError: they cannot be read, or lack the scoring head.
        """
        extra = {"trust_remote_code": True} if self.trust_remote_code else {}
        if self.config.model_type == "gemma2":
            extra["attn_implementation"] = "eager"  # the others do not cap its attention logits
        try:
            model, info = self.model_class.from_pretrained(
                self.name, config=self.config, dtype=dtype, use_safetensors=True, output_loading_info=True, **extra
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"reward_model: cannot load {self.name}: {error}") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(f"reward_model: {self.name} is no whole reward model: its checkpoint lacks {missing}")
        self.model = model.to(device).eval()

    def padding(self, sequences: Sequence[Sequence[int]]) -> int:
        """The pad token's id: the config's. Decoders are read at the last token that is not padding, so one without a
        pad token gets an id that ends none of these sequences."""
        if self.pad is not None:
            return self.pad
        ends = {sequence[-1] for sequence in sequences}
        pad = next(i for i in range(len(ends) + 1) if i not in ends)
        self.model.config.get_text_config().pad_token_id = pad
        return pad

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Values (B,) of right-padded token ids (B, T)."""
        if isinstance(self.model, GenericForSequenceClassification):  # a decoder: see ArmoRM.forward about the mask
            return self.model(input_ids=input_ids, use_cache=False).logits.squeeze(-1)
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(-1)

    @torch.inference_mode()
    def values(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Run one batch of token ids, padded on the right."""
        width, pad = max(map(len, sequences)), self.padding(sequences)
        input_ids = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in sequences])
        lengths = torch.tensor([[len(ids)] for ids in sequences])
        mask = (torch.arange(width) < lengths).long()
        device = self.model.device
        return self.forward(input_ids.to(device), mask.to(device)).float().tolist()

    def score(self, prompt: str, responses: Sequence[str], batch_tokens: int | None = None) -> list[float]:
        """Score the responses to one prompt."""
        units = self.units(prompt, responses)
        found = {u: v for batch in score_batches(self, units, batch_tokens) for u, v in batch}
        return self.combine([found[unit] for unit in units])


class ArmoRMAdapter(RewardModel):
    """RLHFlow/ArmoRM-Llama3-8B-v0.1 and models of its kind, without their code."""

    model_class = ArmoRM

    def encode(self, unit: Unit) -> list[int]:
        ids, pattern = super().encode(unit), gating_pattern(self.config)
        if not any(ids[i : i + len(pattern)] == pattern for i in range(len(ids))):
            raise UserError(
                f"reward_model: the chat template of {self.name} does not write the tokens {pattern} in front of the "
                "answer, which ArmoRM's gate reads; set gating_pattern in its config.json"
            )
        return ids

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask).score


class PairRMAdapter(RewardModel):
    """llm-blender/PairRM and PairRM-hf: every response against every other, both ways round.

    score_i = mean over all n responses j of (L_ij - L_ji), with L_ij the logit that i, put first, beats j (0 for
    i = j); both orders together cancel the model's preference for a place. (Jiang et al. 2023, section 3.3.)
    """

    model_class = PairRM
    source_tokens, pair_tokens = 1224, 2048  # longest source; longest source and two candidates together
    markers = ("<|source|>", "<|candidate1|>", "<|candidate2|>")

    def units(self, prompt: str, responses: Sequence[str]) -> list[Unit]:
        pairs = [(a, b) for i, a in enumerate(responses) for j, b in enumerate(responses) if i != j]
        return [(prompt, a, b) for a, b in pairs]

    def encode(self, unit: Unit) -> list[int]:
        source = self.segment(self.markers[0], unit[0], self.source_tokens)
        room = (self.pair_tokens - len(source)) // 2
        candidates = zip(self.markers[1:], unit[1:], strict=True)
        return source + [token for marker, text in candidates for token in self.segment(marker, text, room)]

    def segment(self, marker: str, text: str, limit: int) -> list[int]:
        """[CLS] marker text [SEP], the text cut to fit the limit."""
        text = self.guard.protect(text.replace(self.tokenizer.sep_token, " "))
        ids = self.guard.ids(marker + text)[: limit - 2]
        return [self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id]

    def combine(self, values: Sequence[float]) -> list[float]:
        count = (1 + math.isqrt(1 + 4 * len(values))) // 2  # n (n - 1) values
        rest = iter(values)
        logits = [[0.0 if i == j else next(rest) for j in range(count)] for i in range(count)]
        # an exact sum: responses with the same text get the same score
        return [math.fsum(logits[i][j] - logits[j][i] for j in range(count)) / count for i in range(count)]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def load_reward_model(name: str, trust_remote_code: bool = False) -> RewardModel:
    """Read a reward model's config and tokenizer and return its adapter, without the weights (see `load`).

    Raises:
        UserError: no such model; or it has several labels and no head that is known here.
    """
    try:
        raw, _ = PretrainedConfig.get_config_dict(name)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        if "ranker_type" in raw:  # llm-blender/PairRM, whose config.json only names the backbone
            config = AutoConfig.from_pretrained(raw["model_name"])
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"reward_model: cannot load {name}: {error}") from error
    if "ranker_type" in raw or "cand1_prefix_id" in raw:
        return PairRMAdapter(name, pair_config(config, tokenizer, name), tokenizer)
    if "num_objectives" in raw and "gating_hidden_dim" in raw and config.model_type == "llama":
        return ArmoRMAdapter(name, config, tokenizer)
    if config.num_labels != 1:
        raise UserError(
            f"reward_model: {name} has {config.num_labels} labels and no head that is known here; a reward model must "
            "have one label, or be ArmoRM or PairRM"
        )
    return RewardModel(name, config, tokenizer, trust_remote_code)


def pair_config(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> PretrainedConfig:
    """Complete a PairRM config with the ids of its markers.

    Raises:
        UserError: the tokenizer does not have them.
    """
    ids = [tokenizer.get_vocab().get(marker) for marker in PairRMAdapter.markers]
    if None in ids:
        raise UserError(f"reward_model: the tokenizer of {name} lacks PairRM's markers {PairRMAdapter.markers}")
    config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id = ids
    config.vocab_size = max(config.vocab_size, len(tokenizer)) if "n_tasks" in config.to_dict() else len(tokenizer)
    config.n_tasks = config.to_dict().get("n_tasks", 1)
    return config


def make_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped by length, longest first, so that rows x width stays within the budget (or is one row)."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def score_batches(
    model: RewardModel,
    units: Sequence[Unit],
    batch_tokens: int | None = None,
    is_done: Callable[[Unit], bool] = lambda unit: False,
) -> Iterator[list[tuple[Unit, float]]]:
    """Yield the values of one batch after the other; without batch_tokens, 16384 on a GPU and 2048 on a CPU.

    The batches are those of all the units, less the ones that are done: a continued run computes every value in the
    same batch as an uninterrupted one, and so to the same last bit.
    """
    units = list(dict.fromkeys(units))
    if all(map(is_done, units)):
        return
    encoded = [model.encode(unit) for unit in units]
    if batch_tokens is None:  # a CPU gains nothing from more, and loses its cache
        batch_tokens = 2048 if model.model.device.type == "cpu" else 16384
    for batch in make_batches([len(ids) for ids in encoded], batch_tokens):
        if rest := [i for i in batch if not is_done(units[i])]:
            values = model.values([encoded[i] for i in rest])
            yield [(units[i], value) for i, value in zip(rest, values, strict=True)]
