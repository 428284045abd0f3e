"""Settings that all preference objectives share."""

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from simpo.console import warn


@dataclass
class PreferenceConfig(TrainingArguments):
    """transformers' TrainingArguments and how pairs become token ids."""

    max_length: int | None = field(default=None, metadata={"help": "Longest prompt + response in tokens (512)."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "What the prompt of a too long pair is cut to, in tokens (128)."}
    )
    max_completion_length: int | None = field(default=None, metadata={"help": "Encoder-decoder models only: unused."})
    max_target_length: int | None = field(default=None, metadata={"help": "Encoder-decoder models only: unused."})
    truncation_mode: Literal["keep_end", "keep_start"] = field(
        default="keep_end", metadata={"help": "Which end of a too long prompt to keep."}
    )
    sft_weight: float = field(
        default=0.0, metadata={"help": "Weight of the chosen responses' cross-entropy, added to the loss."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Assumed share of wrongly ordered pairs, below 0.5."})
    use_wpo_weighting: bool = field(
        default=False, metadata={"help": "Weight each pair by how likely the policy itself would write it (WPO)."}
    )
    drop_partial_step: bool = field(
        default=False,
        metadata={
            "help": "Steps of whole size only, as the original made them: what an epoch leaves over is carried over "
            "into the next epoch, and dropped at the end (false: one smaller step at the end of each epoch)."
        },
    )
    fused_logps: bool | None = field(
        default=None, metadata={"help": "Log-probabilities without the logits (where the model allows; false: never)."}
    )
    shared_prompt: bool | None = field(
        default=None,
        metadata={"help": "Run a pair's prompt once for both responses (where the attention allows; false: never)."},
    )
    padding_free: bool | None = field(
        default=None, metadata={"help": "Run a batch as one row without padding (automatic; see benchmarks/README.md)."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    label_pad_token_id: int = field(default=-100, metadata={"help": "Label that marks tokens not to be predicted."})
    padding_value: int | None = field(default=None, metadata={"help": "Id that fills batches (the pad token)."})
    generate_during_eval: bool = field(
        default=False, metadata={"help": "Write answers to a few prompts to generations.jsonl at every evaluation."}
    )
    is_encoder_decoder: bool | None = field(default=None, metadata={"help": "Not supported: must stay false."})
    model_init_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, when the trainer is given a model's name."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenize (default: preprocessing_num_workers)."}
    )

    def __post_init__(self):
        # The trainer's own columns are not arguments of the model's forward.
        self.remove_unused_columns = False
        super().__post_init__()
        if self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder: encoder-decoder models are not supported")
        if self.max_completion_length is not None or self.max_target_length is not None:
            warn("max_completion_length and max_target_length only concern encoder-decoder models: ignored")
        if self.max_length is None:
            self.max_length = 512
            warn("max_length is not set: 512 tokens")
        if self.max_prompt_length is None:
            self.max_prompt_length = min(128, self.max_length // 2)
            warn(f"max_prompt_length is not set: {self.max_prompt_length} tokens")
        if not 0 < self.max_prompt_length < self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) must be positive and below max_length "
                f"({self.max_length}), or nothing of the response is left to train on"
            )
        if self.fused_logps is False and (self.shared_prompt or self.padding_free):
            raise ValueError("shared_prompt, padding_free: parts of the fast path, which fused_logps: false turns off")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing ({self.label_smoothing}) must be in [0, 0.5)")
