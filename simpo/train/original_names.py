"""The attributes of the original's trainer that users' code reads and sets; each is a setting in `args`."""

from typing import Any

from transformers import PreTrainedTokenizerBase


def setting(name: str) -> Any:
    """An attribute that is the setting of the same name: setting it changes what the next batch is computed with."""

    def get(trainer: Any) -> Any:
        return getattr(trainer.args, name)

    def put(trainer: Any, value: Any) -> None:
        setattr(trainer.args, name, value)

    return property(get, put)


class OriginalNames:
    """Mixin of a trainer. The lengths and the truncation are used while it is constructed; later they only tell."""

    beta = setting("beta")
    gamma_beta_ratio = setting("gamma_beta_ratio")
    sft_weight = setting("sft_weight")
    label_smoothing = setting("label_smoothing")
    loss_type = setting("loss_type")
    max_length = setting("max_length")
    max_prompt_length = setting("max_prompt_length")
    truncation_mode = setting("truncation_mode")
    label_pad_token_id = setting("label_pad_token_id")
    generate_during_eval = setting("generate_during_eval")
    is_encoder_decoder = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What transformers calls `processing_class` today."""
        return self.processing_class

    @property
    def padding_value(self) -> int | None:
        """The id that fills batches."""
        value = self.args.padding_value
        return self.processing_class.pad_token_id if value is None else value
