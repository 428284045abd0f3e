"""Settings of preference training: what all objectives share, and a class for each with its own."""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from simpo.console import warn
from simpo.objectives import get_objective, objective_names
from simpo.objectives.base import Objective


@dataclass
class PreferenceConfig(TrainingArguments):
    """transformers' TrainingArguments, how pairs become token ids, and what every objective can be combined with.

    To train with an objective, take the class that `config_class` makes for it.
    """

    declaration: ClassVar[Objective | None] = None
    """The objective that a class made by `config_class` is of."""
    foreign_keys: ClassVar[dict[str, str]] = {}
    """Settings of other objectives, and what to say where one is given."""

    objective: str = field(default="", metadata={"help": f"What to train with: {', '.join(objective_names())}."})
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
    logits_memory: float | None = field(
        default=None,
        metadata={
            "help": "GB per process that fused_logps may keep for the head's backward pass, which saves it a matrix "
            "product (by device and free memory; 0: none)."
        },
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Run each optimizer step's pairs (per_device_train_batch_size x gradient_accumulation_steps per "
            "process) in micro-batches of at most so many tokens, with the same results."
        },
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
    dry_run: bool | str = field(
        default=False,
        metadata={
            "help": "Check everything, show summary, samples and the memory needed, and stop, with nothing written; "
            "with a file of accelerate_configs/: for that launch, on GPUs that need not be here."
        },
    )
    dry_run_gpu_gb: float | None = field(
        default=None, metadata={"help": "GB per GPU to plan for (those that are here)."}
    )

    @property
    def should_save(self) -> bool:
        return super().should_save and not self.dry_run

    def __post_init__(self):
        # The trainer's own columns are not arguments of the model's forward.
        self.remove_unused_columns = False
        super().__post_init__()
        if self.dry_run_gpu_gb is not None and not self.dry_run_gpu_gb > 0:
            raise ValueError(f"dry_run_gpu_gb ({self.dry_run_gpu_gb:g}) must be positive")
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
        if self.logits_memory is not None and not self.logits_memory >= 0:
            raise ValueError(f"logits_memory ({self.logits_memory:g}) is in GB: 0 or more")
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise ValueError(f"max_tokens_per_micro_batch ({self.max_tokens_per_micro_batch}) must be at least 1")
        if not self.sft_weight >= 0:
            raise ValueError(f"sft_weight ({self.sft_weight:g}) must be at least 0")
        if self.declaration is None:
            return
        if self.objective != self.declaration.name:
            raise ValueError(
                f"objective: {self.objective}, where {self.declaration.name} is trained; scripts/run_preference.py "
                "trains with any objective"
            )
        if self.max_tokens_per_micro_batch is not None and (self.declaration.mismatched or self.declaration.unpaired):
            raise ValueError(
                f"max_tokens_per_micro_batch: not under {self.objective}, whose losses depend on which pairs make up a "
                "batch; leave it out"
            )
        for setting in self.declaration.settings:
            setting.check(getattr(self, setting.name))
        if self.declaration.check:
            self.declaration.check(self)


@dataclass
class ReferenceConfig(PreferenceConfig):
    """The same for objectives that compare with a reference model."""

    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference model (default: the start model)."}
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Compute the reference log-probabilities once, then train with one model."},
    )


@functools.cache
def config_class(objective: str) -> type[PreferenceConfig]:
    """The settings for training with an objective: those of all, its own, and its defaults.

    Raises:
        UserError: there is no such objective.
    """
    declaration = get_objective(objective)
    base = ReferenceConfig if declaration.reference else PreferenceConfig
    inherited = base.__dataclass_fields__
    own = [(s.name, s.kind, field(default=s.default, metadata={"help": s.help})) for s in declaration.settings]
    for name, default in {"objective": declaration.name, **declaration.defaults}.items():
        own.append((name, inherited[name].type, field(default=default, metadata=inherited[name].metadata)))
    owners: dict[str, list[str]] = {}
    for other in objective_names():
        for key in own_keys(get_objective(other)) - own_keys(declaration):
            owners.setdefault(key, []).append(other)
    return dataclasses.make_dataclass(
        class_name(objective),
        own,
        bases=(base,),
        namespace={
            "__doc__": f"Settings for training with {objective}.",
            "__module__": __name__,  # where pickle finds it: see __getattr__
            "declaration": declaration,
            "foreign_keys": {key: f"is a setting of {', '.join(o)}, not of {objective}" for key, o in owners.items()},
        },
    )


def own_keys(objective: Objective) -> set[str]:
    """The keys that not every objective has."""
    reference = ReferenceConfig.__dataclass_fields__.keys() - PreferenceConfig.__dataclass_fields__.keys()
    return {setting.name for setting in objective.settings} | (reference if objective.reference else set())


def class_name(objective: str) -> str:
    """ln_dpo: LnDpoConfig."""
    return "".join(part.capitalize() for part in objective.split("_")) + "Config"


def __getattr__(name: str) -> type[PreferenceConfig]:
    """The classes of `config_class`, under the names by which saved arguments refer to them."""
    for objective in objective_names():
        if class_name(objective) == name:
            return config_class(objective)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
