"""Settings of older versions: renamed, turned into a value of another one, no longer needed, removed."""

from typing import Any

from simpo.config.values import check_type
from simpo.console import UserError

# Spellings of older versions, read as today's.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "dtype": "torch_dtype",
    "no_cuda": "use_cpu",
    "max_seq_length": "max_length",
    "tokenizer": "tokenizer_name_or_path",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
}
RENAMED_SILENTLY = {"dtype"}  # both spellings are current: `dtype` is transformers' name for it
# Switches that are now a value of another setting.
SWITCHES = {
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "use_flash_attention_2": {"attn_implementation": "flash_attention_2"},
    "adafactor": {"optim": "adafactor"},
}
# No longer settings, and nothing is lost: weights are always safetensors, a run always resumes, the tracker picks its
# folder, the library its backend.
NO_LONGER_NEEDED = {
    "overwrite_output_dir", "save_safetensors", "logging_dir", "half_precision_backend", "fp16_backend",
    "fp16_opt_level", "include_tokens_per_second", "use_legacy_prediction_loop", "ray_scope", "past_index",
    "tpu_num_cores", "tpu_metrics_debug", "mp_parameters", "use_mps_device", "push_to_hub_organization",
    "include_inputs_for_metrics", "jit_mode_eval", "lora_task_type",
}  # fmt: skip
# No longer settings, and something else takes their place.
REMOVED = {
    "use_ipex": "drop it",
    "torchdynamo": "set torch_compile_backend",
    "sharded_ddp": "use accelerate_configs/fsdp.yaml",
    "fsdp_min_num_params": "set min_num_params in fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "set transformer_layer_cls_to_wrap in fsdp_config",
    "dispatch_batches": "set it in accelerator_config",
    "split_batches": "set it in accelerator_config",
}


def modernize(key: str, value: Any, source: str) -> dict[str, Any]:
    """Today's settings for one of an older version; the setting itself when it is none.

    Raises:
        UserError: the setting was removed and something else takes its place, or its value does not fit.
    """
    if key in RENAMED:
        return {RENAMED[key]: value}
    if key in SWITCHES:
        return SWITCHES[key] if check_type(key, value, bool | None, source) else {}
    if key == "warmup_ratio":  # transformers >= 5 reads a number of warm-up steps below 1 as a ratio
        ratio = check_type(key, value, float | None, source)
        if ratio is not None and not 0 <= ratio < 1:
            raise UserError(f"{source}: warmup_ratio ({ratio:g}) must be in [0, 1); a number of steps is warmup_steps")
        return {"warmup_steps": ratio} if ratio else {}
    if key in NO_LONGER_NEEDED:
        return {}
    if key in REMOVED:
        raise UserError(f"{source}: {key} was removed from transformers: {REMOVED[key]}")
    return {key: value}
