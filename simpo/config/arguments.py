"""The arguments that all scripts share: the model's and the data's."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from simpo.console import UserError


@dataclass
class ModelArguments:
    """Which model to train, in which precision, and whether through LoRA adapters."""

    base_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the base model, when model_name_or_path is a LoRA adapter."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to train: hub name or folder."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    model_code_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model's own code (trust_remote_code)."}
    )
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = field(
        default=None,
        metadata={
            "help": "Precision of the weights (also spelt dtype). Not given: float32 (a frozen base model under LoRA "
            "with bf16: the checkpoint's own); bf16 arithmetic comes from mixed precision."
        },
    )
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer, when not the model's."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa, eager, flash_attention_2 or _3, a kernel on the hub (kernels-community/flash-attn2), or "
            "flex_attention (default: sdpa; Gemma-2: eager). All but the first two need a GPU."
        },
    )
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules that get adapters: names, a regular expression, or all-linear, which is the default "
            "(PEFT's own: q_proj,v_proj)."
        },
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole and saved beside the adapters."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Base weights in 8 bits (CUDA, use_peft)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Base weights in 4 bits: QLoRA (CUDA, use_peft)."})
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = field(default="nf4", metadata={"help": "4-bit number format."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize the quantization constants too."})
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = field(
        default="uint8", metadata={"help": "Storage type of 4-bit weights (bfloat16 for FSDP and ZeRO-3)."}
    )

    def __post_init__(self):
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("load_in_8bit and load_in_4bit are both true: choose one.")
        if (self.load_in_8bit or self.load_in_4bit) and not self.use_peft:
            raise UserError("load_in_4bit/load_in_8bit need use_peft: true (quantized weights cannot be trained).")
        if isinstance(self.lora_target_modules, str):
            names = [name.strip() for name in self.lora_target_modules.split(",")]
            if all(re.fullmatch(r"[\w.]+", name) for name in names):  # any other text is a regular expression to PEFT
                self.lora_target_modules = names
        if self.lora_r < 1:
            raise UserError(f"lora_r ({self.lora_r}) must be at least 1")
        if self.lora_alpha < 1:
            raise UserError(f"lora_alpha ({self.lora_alpha}) must be at least 1: the adapters are scaled by it")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout ({self.lora_dropout:g}) must be in [0, 1)")


@dataclass
class DataArguments:
    """Which datasets to train on and how conversations become text."""

    chat_template: str | None = field(
        default=None,
        metadata={"help": "A Jinja template, a .jinja file, or a built-in one: gemma2, llama3, mistral, zephyr."},
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Variables of the chat template, such as {enable_thinking: false}. A template that writes the day "
            "gets one date for the run: {strftime_now: 2026-11-24}, by default today; a run that goes on keeps it."
        },
    )
    dataset_mixer: dict[str, float] | None = field(
        default=None, metadata={"help": "{hub name or folder: fraction of its training rows}."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that receives the formatted text (SFT)."})
    dataset_splits: list[str] = field(
        default_factory=lambda: ["train", "test"],
        metadata={"help": "Splits to load: names with 'train' are trained on, names with 'test' evaluated."},
    )
    dataset_configs: list[str] | None = field(
        default=None, metadata={"help": "Configuration name of each dataset in dataset_mixer, in order."}
    )
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that prepare data."})
    truncation_side: Literal["left", "right"] | None = field(
        default=None, metadata={"help": "Side the tokenizer cuts; left when not given."}
    )
    auto_insert_empty_system_msg: bool = field(
        default=True,
        metadata={"help": "Give conversations without a system message an empty one, if the template has one."},
    )
    header_in_prompt: bool = field(
        default=False,
        metadata={
            "help": "Count the assistant header (Llama-3) as prompt. The published models were trained with it in the "
            "response, where it is part of the loss and of the length."
        },
    )
