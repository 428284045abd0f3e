"""The tokenizer, the policy in the right precision and attention, and its LoRA or quantization settings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from simpo.chat.template import check_syntax, resolve_chat_template
from simpo.chat.variables import describe, fix_variables
from simpo.config import DataArguments, ModelArguments
from simpo.console import UserError, say, warn
from simpo.model_files import check_tokenizer
from simpo.train.checkpoints import check_architecture
from simpo.train.weights import check_vocabulary, choose_attention, get_model_config, load_causal_lm, refuse_float16

if TYPE_CHECKING:
    from peft import PeftConfig

LEAST_SHARE_OF_TOKENS = 0.8  # of a model's embeddings; the published models use 98 % and more


def get_tokenizer(
    model_args: ModelArguments,
    data_args: DataArguments,
    auto_set_chat_template: bool = True,
    mistral_override: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and give it the chat template that `resolve_chat_template` chooses, with its variables fixed.

    A missing pad token becomes EOS; truncation is on the left; a model_max_length above 100,000 becomes 2,048. The
    data arguments' chat_template_kwargs receive the date, if the template writes one.

    Raises:
        UserError: no such tokenizer or template, a tokenizer that is not the model's, or damaged files of either.
    """
    name = model_args.tokenizer_name_or_path or model_args.model_name_or_path
    if name is None:
        raise UserError("model_name_or_path: not given")
    key = "tokenizer_name_or_path" if model_args.tokenizer_name_or_path else "model_name_or_path"
    config = get_model_config(model_args) if model_args.model_name_or_path else None
    check_tokenizer(name, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=model_args.trust_remote_code
        )
    except Exception as error:  # the Rust library raises bare Exceptions
        raise UserError(f"{key}: cannot load the tokenizer of {name}: {error}") from error
    if config is not None:
        embedded = config.get_text_config().vocab_size
        check_vocabulary(tokenizer, embedded)
        if len(tokenizer) < LEAST_SHARE_OF_TOKENS * embedded:
            warn(f"{key}: {len(tokenizer)} tokens, where the model embeds {embedded}: do they belong together?")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has neither a pad nor an EOS token: it cannot pad batches")
    tokenizer.truncation_side = data_args.truncation_side or "left"
    if tokenizer.model_max_length > 100_000:
        tokenizer.model_max_length = 2_048
    if auto_set_chat_template:
        template = resolve_chat_template(
            tokenizer, data_args.chat_template, model_args.model_name_or_path, mistral_override
        )
        data_args.chat_template_kwargs = fix_variables(tokenizer, template.jinja, data_args.chat_template_kwargs)
        check_syntax(tokenizer)
        say(f"chat template: {template.origin}{describe(data_args.chat_template_kwargs)}")
    return tokenizer


def get_kbit_device_map() -> dict[str, int] | None:
    """Device map that puts a quantized model on this process's GPU; None without CUDA."""
    return {"": PartialState().local_process_index} if torch.cuda.is_available() else None


def get_quantization_config(model_args: ModelArguments) -> BitsAndBytesConfig | None:
    """bitsandbytes settings for load_in_4bit / load_in_8bit, or None.

    Raises:
        UserError: no CUDA GPU, or bitsandbytes is not installed.
    """
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    key = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if not torch.cuda.is_available():
        raise UserError(f"{key}: quantized training needs a CUDA GPU; without one, drop {key} and keep use_peft")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(f"{key}: needs bitsandbytes: pip install bitsandbytes") from error
    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = model_args.torch_dtype if model_args.torch_dtype not in (None, "auto") else "bfloat16"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
        bnb_4bit_quant_storage=getattr(torch, model_args.bnb_4bit_quant_storage),
    )


def get_peft_config(model_args: ModelArguments) -> "PeftConfig | None":
    """LoRA settings, or None without use_peft. Without lora_target_modules, every linear layer but the head."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=model_args.lora_target_modules or "all-linear",
        modules_to_save=model_args.lora_modules_to_save,
    )


def choose_dtype(model_args: ModelArguments, training_args: TrainingArguments) -> torch.dtype | str:
    """Precision of the weights.

    Not given means float32, in which an update of 1e-6 is not rounded away (bf16 arithmetic is mixed precision's
    matter). Frozen base weights under LoRA need no such room: with bf16 they keep the checkpoint's precision.

    Raises:
        UserError: float16, whose gradients overflow.
    """
    if model_args.torch_dtype == "float16":
        raise UserError(
            "torch_dtype: float16 weights cannot be trained (gradients overflow); leave it out and set bf16 or fp16"
        )
    if model_args.torch_dtype is None:
        return "auto" if model_args.use_peft and training_args.bf16 else torch.float32
    return "auto" if model_args.torch_dtype == "auto" else getattr(torch, model_args.torch_dtype)


def load_policy(
    model_args: ModelArguments, training_args: TrainingArguments, checkpoint: str | None = None
) -> PreTrainedModel:
    """Load the model to train.

    Args:
        checkpoint: what the run resumes from, if anything; it must be of the same architecture.

    Raises:
        UserError: no such model, encoder-decoder, float16 weights, another model's checkpoint, or an adapter under
            ZeRO-3.
    """
    check_architecture(checkpoint, get_model_config(model_args))
    model = load_model(model_args, choose_dtype(model_args, training_args))
    model.config.use_cache = not training_args.gradient_checkpointing
    if model.dtype == torch.bfloat16 and not model_args.use_peft and training_args.learning_rate < 1e-5:
        warn("bfloat16 weights round small updates away: leave torch_dtype out for learning rates like these")
    return model


def load_reference(
    model_args: ModelArguments, training_args: TrainingArguments
) -> Callable[[], PreTrainedModel] | None:
    """A function that loads the frozen reference model; None when the policy with its adapters off serves.

    The copy is kept in bfloat16 when training is in bf16, which is the precision it is read in anyway.

    Raises:
        UserError: no such model, or its vocabulary is not the policy's.
    """
    name = training_args.ref_model_name_or_path
    if model_args.use_peft and name is None:
        return None
    frozen = replace(model_args, use_peft=False, model_name_or_path=name or model_args.model_name_or_path)
    check_same_vocabulary(get_model_config(model_args), get_model_config(frozen))
    dtype = torch.bfloat16 if training_args.bf16 else choose_dtype(model_args, training_args)
    return lambda: load_model(frozen, dtype)


def check_same_vocabulary(policy: PretrainedConfig, reference: PretrainedConfig) -> None:
    """Refuse a reference model whose token ids mean something else.

    Raises:
        UserError: the vocabularies differ in size.
    """
    sizes = [config.get_text_config().vocab_size for config in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the reference model {reference._name_or_path} has a vocabulary of {sizes[1]} tokens, "
            f"the policy one of {sizes[0]}"
        )


def load_model(model_args: ModelArguments, dtype: torch.dtype | str) -> PreTrainedModel:
    """Load a model with the attention and quantization of the model arguments; an adapter is merged into its base.

    Raises:
        UserError: no such model, damaged files, encoder-decoder, float16 weights, or an adapter under ZeRO-3.
    """
    quantization = get_quantization_config(model_args)
    model = load_causal_lm(
        model_args,
        code_revision=model_args.model_code_revision,
        trust_remote_code=model_args.trust_remote_code,
        attn_implementation=choose_attention(model_args.attn_implementation, get_model_config(model_args).model_type),
        dtype=dtype,
        quantization_config=quantization,
        device_map=get_kbit_device_map() if quantization and not is_deepspeed_zero3_enabled() else None,
    )
    refuse_float16(model)
    return model


def model_identity(name: str) -> str:
    """A model's name for comparison: a folder's absolute path, or the hub repository."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
