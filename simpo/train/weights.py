"""Reading a causal language model's files: which ones, in what precision, and an adapter's merge into its base."""

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION
from transformers.utils.peft_utils import find_adapter_config_file

from simpo.config import ModelArguments
from simpo.console import UserError, warn
from simpo.model_files import check_model, is_adapter_folder, merge_command

# model families that number positions from the pad token's id on
AFTER_PADDING = {
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def is_adapter_model(model_name_or_path: str, revision: str = "main") -> bool:
    """True when the folder or hub repository holds a PEFT adapter instead of a whole model."""
    return find_adapter_config_file(model_name_or_path, revision=revision) is not None


def get_model_config(model_args: ModelArguments) -> PretrainedConfig:
    """Load the model's configuration (of the base model, for an adapter).

    Raises:
        UserError: no such model, damaged files, or an encoder-decoder model.
    """
    name, revision, key = base_model(model_args.model_name_or_path, model_args)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=model_args.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        place = "" if Path(name).is_dir() else ", which is no folder here, from the hub"
        raise UserError(f"{key}: cannot load {name}{place}: {error}") from error
    if config.is_encoder_decoder:
        raise UserError(f"model_name_or_path: {name} is an encoder-decoder model; only decoder-only models can be used")
    return config


def base_model(name: str, model_args: ModelArguments, key: str = "model_name_or_path") -> tuple[str, str | None, str]:
    """Name and revision of what has to be loaded first, and whose setting it is: an adapter's base, or the model.

    Args:
        key: the setting that gave the name.

    Raises:
        UserError: damaged files, or a base that is neither a folder nor a name on the hub.
    """
    check_model(name, key)
    try:
        if not is_adapter_model(name, model_args.model_revision):
            return name, model_args.model_revision, key
        from peft import PeftConfig

        base = PeftConfig.from_pretrained(name, revision=model_args.model_revision).base_model_name_or_path
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{key}: cannot load {name}: {error}") from error
    key = f"base_model_name_or_path in the adapter_config.json of {name}"
    if not base:
        raise UserError(f"{key}: not given; name the model that the adapter belongs to")
    check_model(base, key)
    if is_adapter_folder(base):
        raise UserError(f"{key}: {base} is an adapter itself: merge it first ({merge_command(base)})")
    return base, model_args.base_model_revision, key


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedded: int) -> None:
    """Refuse a tokenizer with more tokens than the model embeds (many embed a few more than they have, for speed).

    Raises:
        UserError: the tokenizer is another model's.
    """
    if len(tokenizer) > embedded:
        raise UserError(
            f"tokenizer_name_or_path: the tokenizer has {len(tokenizer)} tokens and the model embeds {embedded}: they "
            "do not belong together"
        )


def position_limit(config: PretrainedConfig) -> int | None:
    """The longest input in tokens, scaled as the config says; None where positions are relative or have no end."""
    settings = config.get_text_config().to_dict()
    if settings.get("relative_attention") and not settings.get("position_biased_input"):  # DeBERTa
        return None
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    if config.model_type in AFTER_PADDING:
        return positions - (config.pad_token_id or 0) - 1
    rope = settings.get("rope_parameters") or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # one for each kind of layer, in some
    stretched = [
        (kind.get("original_max_position_embeddings") or positions) * (kind.get("factor") or 1) for kind in kinds
    ]
    return int(max(positions, *stretched))


FLASH_PACKAGES = {  # the check for each, and how to get it without the hub
    "flash_attention_2": (is_flash_attn_2_available, "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": (is_flash_attn_3_available, "flash-attn-3, from flash-attention's folder hopper"),
}


def choose_attention(requested: str | None, model_type: str) -> str | None:
    """The attention implementation to load: what was asked for, or for Gemma-2 eager, as sdpa cannot cap its scores.

    Raises:
        UserError: it cannot run here.
    """
    usual = "eager" if model_type == "gemma2" else "sdpa"
    if requested is not None and (why := unusable_attention(requested)):
        raise UserError(f"attn_implementation: {requested} {why}; here: --attn_implementation={usual}")
    if model_type == "gemma2" and requested in (None, "sdpa"):
        if requested == "sdpa":
            warn("sdpa cannot cap attention logits, which Gemma-2 needs: using eager instead")
        return usual
    return requested


def needs_gpu(attention: str | None) -> bool:
    flash = is_flash_attention_requested(requested_attention_implementation=attention)
    return flash or attention == "flex_attention"


def unusable_attention(requested: str) -> str | None:
    """What flash attention and FlexAttention lack to train here, if anything.

    The hub's prebuilt kernels serve as flash-attn where `kernels` is installed: transformers loads them.
    """
    if needs_gpu(requested) and PartialState().device.type == "cpu":
        return "needs a GPU"
    installed, package = FLASH_PACKAGES.get(requested, (None, ""))
    if installed is None or installed(kernels_fallback_ok=True):
        return None
    prebuilt = f"pip install 'kernels>={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}', and access to the hub"
    return f"needs a prebuilt kernel ({prebuilt}) or one built here ({package})"


def load_named_model(name: str, init_kwargs: dict[str, Any] | None) -> PreTrainedModel:
    """Load what a trainer was given by name, with the arguments of from_pretrained that came along.

    Without a dtype (also spelt torch_dtype), or with None, the weights are float32, as the original's were: today's
    from_pretrained would take the checkpoint's bfloat16, in which small updates round away.

    Raises:
        UserError: see `load_model`; or an unknown dtype.
    """
    kwargs = dict(init_kwargs or {})
    old, dtype = kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None)
    dtype = dtype or old or torch.float32
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UserError(f"model_init_kwargs: dtype: {dtype!r} is not a type of torch")
        dtype = getattr(torch, dtype)
    model_args = ModelArguments(
        model_name_or_path=name,
        model_revision=kwargs.pop("revision", None) or "main",
        trust_remote_code=kwargs.pop("trust_remote_code", False),
    )
    attention = choose_attention(kwargs.pop("attn_implementation", None), get_model_config(model_args).model_type)
    trust = model_args.trust_remote_code
    model = load_causal_lm(model_args, dtype=dtype, attn_implementation=attention, trust_remote_code=trust, **kwargs)
    refuse_float16(model)
    return model


def refuse_float16(model: PreTrainedModel) -> None:
    """Raise a UserError for float16 weights, whose gradients overflow."""
    if model.dtype == torch.float16:
        raise UserError(
            f"{model.name_or_path} stores float16 weights, which cannot be trained: ask for another torch_dtype"
        )


def load_causal_lm(model_args: ModelArguments, **kwargs: Any) -> PreTrainedModel:
    """Load the model that the arguments name; an adapter is merged into its base.

    Args:
        kwargs: of `from_pretrained`, without the revision.

    Raises:
        UserError: see `load_model`.
    """
    name = model_args.model_name_or_path
    base, revision, key = base_model(name, model_args)
    if base != name and is_deepspeed_zero3_enabled():
        raise UserError(
            f"model_name_or_path: {name} is a LoRA adapter, which cannot be merged under ZeRO-3: merge it first "
            f"({merge_command(name)}) and name that folder"
        )
    model = load_base(base, key, revision=revision, **kwargs)
    if base != name:
        model = merge_adapter(model, name, model_args.model_revision)
        model.requires_grad_(True)  # PEFT had frozen the base weights
    return model


def load_base(name: str, key: str, **kwargs: Any) -> PreTrainedModel:
    """Load a whole causal language model.

    Args:
        key: the setting that named it, for the message.
        kwargs: of `from_pretrained`.

    Raises:
        UserError: it cannot be loaded, or its files lack tensors (which would be left random).
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{key}: cannot load {name}: {error}") from error
    tied = model.all_tied_weights_keys  # under ZeRO-3 reported as missing
    if missing := sorted(set(info["missing_keys"]) - set(tied)):
        raise UserError(
            f"{key}: the weights in {name} are not those of its config.json ({type(model).__name__}): {len(missing)} "
            f"tensors are missing, such as {missing[0]}"
        )
    return model


def merge_adapter(model: PreTrainedModel, adapter: str, revision: str | None = None) -> PreTrainedModel:
    """Add an adapter's updates to the weights of its base.

    Raises:
        UserError: its tensors do not fit the base, or it is of a kind that cannot be merged (prompt tuning).
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # PEFT would go on with random ones
            adapted = PeftModel.from_pretrained(model, adapter, revision=revision)
        untie_adapted_embeddings(adapted.get_base_model())
        return adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, UserWarning) as error:
        raise UserError(
            f"the adapter {adapter} does not fit its base {model.name_or_path} (was one of them resized or replaced "
            f"since?): {error}"
        ) from error


def untie_adapted_embeddings(model: PreTrainedModel) -> None:
    """Give embeddings and head a weight each where they share one and an adapter changes only one of them.

    Merged into the shared weight, the update would change the other as well, which training did not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if any(isinstance(layer, BaseTunerLayer) for layer in (embeddings, head)) and head.weight is embeddings.weight:
        own = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        own.weight = torch.nn.Parameter(own.weight.detach().clone())
        model.config.tie_word_embeddings = False
