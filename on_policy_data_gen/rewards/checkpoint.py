"""A reward model on disk or on the hub: its config and tokenizer, what it takes, and how a batch of it is run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from conversations import to_messages
from rewards.base import CannotScore, Options, Outcome, RewardSource, Unit
from rewards.batches import Encoded, outcome_of, plan, run
from simpo.chat.ids import ContentGuard, chat_ids
from simpo.chat.variables import fix_variables
from simpo.console import UserError
from simpo.model_files import check_tokenizer, check_whole_model
from simpo.train.weights import position_limit

CUT = "cut to the longest length"
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, AssertionError, ImportError, SafetensorError)


def read_config(name: str) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        UserError: there is none.
    """
    try:
        return PretrainedConfig.get_config_dict(name)[0]
    except UNREADABLE as error:
        raise UserError(f"reward_model: cannot load {name}: {error}") from error


class Checkpoint(RewardSource):
    """A model that reads a prompt and a response on its chat template, or as a text pair if it has none."""

    model_class: ClassVar[Any]
    shares_prompts: bool = False
    """Whether the answers to a prompt can share it: see `Decoder`."""

    def __init__(self, argument: str, options: Options):
        super().__init__(argument, options)
        check_whole_model(argument, "reward_model")
        check_tokenizer(argument, "reward_model")
        raw = read_config(argument)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(argument, trust_remote_code=options.trust_remote_code)
            self.config = self.read_model_config(raw)
        except UNREADABLE as error:
            raise UserError(f"reward_model: cannot load {argument}: {error}") from error
        self.check()
        self.tokenizer.model_max_length = 10**9  # the model's own limit counts
        self.variables = None
        if self.tokenizer.chat_template is not None:  # one date for all scores of a folder, if it writes one
            template = self.tokenizer.get_chat_template()
            self.variables = fix_variables(self.tokenizer, template, options.template_variables)
        self.guard = ContentGuard(self.tokenizer)
        self.model: PreTrainedModel | None = None
        self.positions = position_limit(self.config)
        text_config = self.config.get_text_config()
        self.vocabulary: int = text_config.vocab_size
        pad = text_config.pad_token_id
        self.pad = pad if pad is not None and 0 <= pad < self.vocabulary else None
        text_config.pad_token_id = self.pad
        if options.max_length is not None and self.positions is not None and options.max_length > self.positions:
            raise UserError(f"max_length: {options.max_length}, but {argument} has {self.positions} positions")
        self.probe()

    def read_model_config(self, raw: dict[str, Any]) -> PretrainedConfig:
        return AutoConfig.from_pretrained(self.argument, trust_remote_code=self.options.trust_remote_code)

    def check(self) -> None:
        """Raise a UserError for a checkpoint that is no such model."""

    def probe(self) -> None:
        """Raise a UserError for a model that would refuse every response."""
        try:
            self.encode(("Hello?", "Yes."))
        except CannotScore as error:
            raise UserError(f"reward_model: {self.argument} cannot score anything: {error}") from error

    def settings(self) -> dict[str, Any]:
        return {"max_length": self.options.max_length, "chat_template_kwargs": self.variables}

    def encode(self, unit: Unit) -> Encoded:
        """A unit as the model takes it, within its limits. Special tokens spelt out in its texts are tokenized as text.

        Raises:
            CannotScore: it is too long for the model, or the model's template or vocabulary does not take it.
        """
        encoded = self.encode_whole(unit)
        limit = self.options.max_length
        if limit is not None and encoded.length > limit:
            encoded = Encoded(self.cut(unit, encoded, limit), (*encoded.notes, CUT))
        if self.positions is not None and encoded.length > self.positions:
            raise CannotScore(
                f"it has {encoded.length} tokens with its prompt, and the model {self.positions} positions "
                f"(--max_length {self.positions} would cut it)"
            )
        if (highest := max(encoded.inputs["input_ids"], default=0)) >= self.vocabulary:
            raise CannotScore(f"the tokenizer writes the token {highest}, and the model knows {self.vocabulary}")
        return encoded

    def encode_whole(self, unit: Unit) -> Encoded:
        prompt, response = unit
        if self.tokenizer.chat_template is None:
            return Encoded(self.pair(unit))
        messages = [*to_messages(prompt), {"role": "assistant", "content": response}]
        try:
            return Encoded({"input_ids": chat_ids(self.guard, messages)[1]})
        except UserError as error:
            raise CannotScore(str(error)) from error

    def pair(self, unit: Unit, **options: Any) -> dict[str, list[int]]:
        prompt, response = unit
        if not isinstance(prompt, str):
            raise CannotScore("the model has no chat template, and the prompt several messages")
        return dict(self.tokenizer(prompt, response, split_special_tokens=True, **options))

    def cut(self, unit: Unit, encoded: Encoded, limit: int) -> dict[str, list[int]]:
        """The inputs cut to the limit: a pair as its tokenizer cuts pairs, a conversation at its end."""
        if self.tokenizer.chat_template is None:
            return self.pair(unit, truncation=True, max_length=limit)
        return {name: values[:limit] for name, values in encoded.inputs.items()}

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the weights (safetensors only).

        Raises:
            UserError: they cannot be read, or lack the scoring head.
        """
        extra = {"trust_remote_code": True} if self.options.trust_remote_code else {}
        if self.config.model_type == "gemma2":
            extra["attn_implementation"] = "eager"  # the others do not cap its attention logits
        try:
            model, info = self.model_class.from_pretrained(
                self.argument, config=self.config, dtype=dtype, use_safetensors=True, output_loading_info=True, **extra
            )
            self.model = model.to(device).eval()
        except UNREADABLE as error:
            raise UserError(f"reward_model: cannot load {self.argument}: {error}") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise UserError(f"reward_model: {self.argument} is no whole reward model: its checkpoint lacks {missing}")

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Values (B,) of right-padded inputs, each (B, T)."""
        raise NotImplementedError

    def padding(self, sequences: Sequence[Sequence[int]]) -> int:
        """The pad token's id: the config's, if the model has such a token. Decoders are read at the last token that is
        not padding, so one without gets an id that ends none of these sequences."""
        if self.pad is not None:
            return self.pad
        ends = {sequence[-1] for sequence in sequences}
        pad = next(i for i in range(len(ends) + 1) if i not in ends)
        self.model.config.get_text_config().pad_token_id = pad
        return pad

    @torch.inference_mode()
    def values(self, batch: Sequence[tuple[Unit, Encoded]]) -> list[float]:
        """Run one batch, a row each, padded on the right."""
        inputs = [encoded.inputs for _, encoded in batch]
        sequences = [each["input_ids"] for each in inputs]
        width = max(map(len, sequences))
        fill = {"input_ids": self.padding(sequences), "token_type_ids": self.tokenizer.pad_token_type_id}
        padded = {
            name: torch.tensor([[*each[name], *[fill.get(name, 0)] * (width - len(each[name]))] for each in inputs])
            for name in inputs[0]
        }
        lengths = torch.tensor([[len(ids)] for ids in sequences])
        padded.setdefault("attention_mask", (torch.arange(width) < lengths).long())
        return self.forward(**{name: tensor.to(self.model.device) for name, tensor in padded.items()}).float().tolist()

    def score_batches(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool] = lambda unit: False
    ) -> Iterator[list[tuple[Unit, Outcome]]]:
        refused, batches = self.plan(units, is_done, self.model.device.type)
        if refused:
            yield refused
        for batch in batches:
            found = run(self.values, batch)
            yield [(unit, outcome_of(value, encoded)) for (unit, encoded), value in zip(batch, found, strict=True)]

    def plan(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool], device: str
    ) -> tuple[list[tuple[Unit, Outcome]], list[list[tuple[Unit, Encoded]]]]:
        """What `score_batches` computes on such a device: see `rewards.batches.plan`."""
        return plan(self.encode, units, self.budget(device), is_done, self.shares_prompts)

    def budget(self, device: str) -> int:
        """Tokens of one forward pass."""
        if self.options.batch_tokens is not None:
            return self.options.batch_tokens
        return 2048 if device == "cpu" else 16384  # a CPU gains nothing from more, and loses its cache
