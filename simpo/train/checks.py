"""Start-up checks: what transformers, PEFT or torch would refuse later, or ignore without a word, said at once."""

import copy
import difflib
import os
from dataclasses import MISSING, fields, replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer_utils import SaveStrategy
from transformers.utils.generic import is_flash_attention_requested

from simpo.config import DataArguments, ModelArguments
from simpo.config.parser import culprit
from simpo.config.reading import brief
from simpo.console import UserError, warn
from simpo.logps.varlen import check_kernel
from simpo.train.config import PreferenceConfig
from simpo.train.launch_plan import is_planned_elsewhere
from simpo.train.model import choose_dtype, get_quantization_config
from simpo.train.model_on_paper import REFUSALS, check_policy, check_positions, model_on_paper
from simpo.train.weights import choose_attention, get_model_config, is_adapter_model, needs_gpu

AT_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "learning_rate": 0, "weight_decay": 0, "max_grad_norm": 0, "seed": 0, "data_seed": 0, "dataloader_num_workers": 0,
    "preprocessing_num_workers": 1, "dataset_num_proc": 1, "max_length": 1, "padding_value": 0,
    "sft_weight": 0, "ddp_timeout": 1, "eval_delay": 0, "eval_accumulation_steps": 1, "neftune_noise_alpha": 0,
    "adam_epsilon": 0,
}  # fmt: skip
LARGEST_SEED = 2**32 - 1
LONGEST_NAME = 255  # bytes, on every usual file system
METRICS = [
    "loss", "runtime", "samples_per_second", "steps_per_second", "rewards/chosen", "rewards/rejected",
    "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected",
]  # fmt: skip


def check_settings(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, objective: str
) -> None:
    """Refuse what cannot work, name what has no effect, and settle the attention, before anything slow.

    Raises:
        UserError: names the setting and the remedy.
    """
    if model_args.model_name_or_path is None:
        raise UserError("model_name_or_path: not given, in a YAML (the first argument) or as --model_name_or_path=...")
    check_names(model_args, data_args, args)
    check_numbers(data_args, args)
    check_tracking(args)
    check_evaluation(data_args, args)
    check_launch(args)
    dtype = choose_dtype(model_args, args)
    elsewhere = is_planned_elsewhere(args)
    if not elsewhere:
        get_quantization_config(model_args)
    config = get_model_config(model_args)
    warn_of_idle_settings(model_args, data_args, args)
    check_positions(config, args, model_args.model_name_or_path)
    if reference := getattr(args, "ref_model_name_or_path", None):
        check_positions(get_model_config(replace(model_args, model_name_or_path=reference)), args, reference)
    attention = model_args.attn_implementation
    if elsewhere and needs_gpu(attention):
        warn(f"attn_implementation: {attention} is not tried on this machine")
        attention = None
    else:
        attention = model_args.attn_implementation = choose_attention(attention, config.model_type)
    flash = is_flash_attention_requested(requested_attention_implementation=attention)
    if flash and dtype == torch.float32 and args.mixed_precision == "no":
        raise UserError(f"attn_implementation: {attention} has no float32: set bf16: true")
    model = model_on_paper(config, attention)
    if flash and model is not None:
        check_kernel(model.config._attn_implementation, args.device)
    model = None if objective == "reward" else model
    rehearse(args, model)
    if model is not None:
        check_policy(model, model_args, args)


def check_names(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Refuse names that no file can have, which the system reports in its own way wherever they are first looked up."""
    keys = {
        "model_name_or_path",
        "tokenizer_name_or_path",
        "ref_model_name_or_path",
        "output_dir",
        "resume_from_checkpoint",
    }
    given = {key: value for part in (model_args, args) for key, value in vars(part).items() if key in keys}
    given |= {"dataset_mixer": max(data_args.dataset_mixer or [""], key=len)}
    if "{" not in (data_args.chat_template or ""):
        given |= {"chat_template": data_args.chat_template}
    for key, name in given.items():
        if max(len(part.encode()) for part in (name or "").split("/")) > LONGEST_NAME:
            raise UserError(f"{key}: {brief(name)} is too long for a file's name")


def check_numbers(data_args: DataArguments, args: TrainingArguments) -> None:
    for name, least in AT_LEAST.items():
        value = getattr(args, name, getattr(data_args, name, None))
        if value is not None and value < least:
            raise UserError(f"{name} ({value:g}) must be at least {least}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"{name} ({getattr(args, name):g}) must be in [0, 1)")
    for name in ("seed", "data_seed"):
        if (getattr(args, name) or 0) > LARGEST_SEED:
            raise UserError(f"{name} must be at most {LARGEST_SEED}")
    for event in ("logging", "eval", "save"):
        steps = getattr(args, f"{event}_steps")
        if getattr(args, f"{event}_strategy") == "steps" and (steps is None or steps <= 0):
            raise UserError(f"{event}_steps ({steps}) must be positive with {event}_strategy: steps")
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise UserError(f"num_train_epochs ({args.num_train_epochs:g}) must be positive, or max_steps")
    if isinstance(args, PreferenceConfig) and args.label_pad_token_id >= 0:
        raise UserError(f"label_pad_token_id ({args.label_pad_token_id}) must be negative: it may be no token's id")


def check_tracking(args: TrainingArguments) -> None:
    args.report_to = [name.strip() for entry in args.report_to if entry for name in entry.split(",")]
    available = get_available_reporting_integrations()
    for tracker in args.report_to:
        if tracker not in available:
            name = brief(tracker).strip("'")
            raise UserError(f"report_to: {name} is not installed: pip install {name}, or --report_to=none")


def check_evaluation(data_args: DataArguments, args: TrainingArguments) -> None:
    """Check what evaluations decide: the best model, and the metric that it is the best by."""
    best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    if best and not any("test" in split for split in data_args.dataset_splits):
        raise UserError("dataset_splits names no test split, which load_best_model_at_end and save_strategy: best need")
    if best and args.eval_strategy == "no":
        raise UserError("load_best_model_at_end and save_strategy: best need an eval_strategy: steps or epoch")
    metric = args.metric_for_best_model
    if metric is None or not isinstance(args, PreferenceConfig):
        return
    if args.eval_strategy == "no":
        warn(f"metric_for_best_model: {metric} has no effect without an eval_strategy")
        return
    known = [*METRICS]
    known += ["weights/mean", "weights/min"] if args.use_wpo_weighting else []
    known += ["aux_loss"]  # of models with experts that ask for it
    known += ["sft_loss"] if args.sft_weight > 0 else []
    if metric.removeprefix("eval_") not in known:
        near = difflib.get_close_matches(metric.removeprefix("eval_"), known, n=1, cutoff=0)
        raise UserError(f"metric_for_best_model: there is no metric {metric}; the nearest is {near[0]}")


def check_launch(args: TrainingArguments) -> None:
    """Check settings against the launcher's, which speaks through accelerate's environment variables."""
    launched = {
        name for name in ("deepspeed", "fsdp") if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true"
    }
    for name in launched:
        if getattr(args, name):
            raise UserError(f"{name} is set by the accelerate configuration too: drop the setting {name}")
    sharded = launched | {name for name in ("deepspeed", "fsdp") if getattr(args, name)}
    if len(sharded) == 2:
        raise UserError("deepspeed and fsdp are both set: choose one")
    if args.fsdp and args.world_size == 1:
        raise UserError("fsdp shards a model over several processes: start them with accelerate launch, or drop fsdp")
    if sharded and args.save_only_model and args.load_best_model_at_end:
        raise UserError(f"save_only_model and load_best_model_at_end do not go together under {min(sharded)}")
    if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3 and args.auto_find_batch_size:
        raise UserError("auto_find_batch_size does not work under ZeRO-3: drop it")
    if args.gradient_checkpointing and os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() == "true":
        raise UserError("gradient_checkpointing and fsdp_activation_checkpointing are both on: choose one")


def warn_of_idle_settings(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Name the settings that were changed from their defaults and change nothing in this run."""
    lora = [name for name in vars(model_args) if name.startswith("lora_")]
    bits = ["bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"]
    idle = [
        (not model_args.use_peft, "use_peft is false", model_args, lora),
        (not model_args.load_in_4bit, "load_in_4bit is false", model_args, bits),
        (not model_args.trust_remote_code, "trust_remote_code is false", model_args, ["model_code_revision"]),
        (True, "no text is kept in a column", data_args, ["text_column"]),
        (not args.gradient_checkpointing, "gradient_checkpointing is false", args, ["gradient_checkpointing_kwargs"]),
        (args.eval_strategy == "no", "eval_strategy is no", args, ["eval_steps", "eval_delay", "eval_on_start"]),
        (args.save_strategy != "steps", "save_strategy is not steps", args, ["save_steps"]),
        (args.metric_for_best_model is None, "no metric_for_best_model", args, ["greater_is_better"]),
        (
            not args.optim.startswith(("galore", "apollo")),
            f"not for {args.optim.value}",
            args,
            ["optim_target_modules"],
        ),
        (True, "these scripts train", args, ["do_predict"]),
    ]
    if not is_adapter_model(model_args.model_name_or_path, model_args.model_revision):
        idle.append((True, "the model is no adapter", model_args, ["base_model_revision"]))
    if isinstance(args, PreferenceConfig):
        idle += [
            (True, "not part of this loss", args, ["label_smoothing_factor", "label_names"]),
            (True, "the keys beside it say how the model is loaded", args, ["model_init_kwargs"]),
            (not args.do_eval, "there is no evaluation", args, ["generate_during_eval"]),
        ]
    for applies, reason, arguments, names in idle:
        defaults = {field.name: field.default for field in fields(arguments)}
        changed = [name for name in names if getattr(arguments, name) != defaults[name]]
        if applies and changed:
            warn(f"{', '.join(changed)}: without effect ({reason})")


def rehearse(args: TrainingArguments, model: PreTrainedModel | None) -> None:
    """Let transformers build its optimizer, schedule and (in a single process) trainer for a model of one weight.

    Args:
        model: the policy on paper, for optimizers that choose its layers.

    Raises:
        UserError: it refuses; names the setting.
    """
    stand_in = torch.nn.Linear(1, 1)
    try:
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model or stand_in)
        optimizer = torch.optim.SGD(stand_in.parameters())
        if not {"params", "model", "optimizer_dict"} & kwargs.keys():  # else it was given the model's own layers
            optimizer = optimizer_class(stand_in.parameters(), **kwargs)
    except REFUSALS as error:
        given = f"optim: {args.optim.value}" + (f" with optim_args {args.optim_args}" if args.optim_args else "")
        raise UserError(f"{given}: {error}") from error
    if args.optim_args:
        plain = Trainer.get_optimizer_cls_and_kwargs(with_changes(args, optim_args=None), model or stand_in)[1]
        if kwargs == plain:
            warn(f"optim_args: without effect ({args.optim.value} takes none)")
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(8), 8, args.lr_scheduler_kwargs)
    except REFUSALS as error:
        given = f"lr_scheduler_type: {args.lr_scheduler_type.value}"
        given += f" with lr_scheduler_kwargs {args.lr_scheduler_kwargs}" if args.lr_scheduler_kwargs else ""
        raise UserError(f"{given}: {error}") from error
    try:
        if args.use_liger_kernel:
            apply_liger_kernel(stand_in, args.liger_kernel_config)
    except REFUSALS as error:
        raise UserError(f"use_liger_kernel: {error}") from error
    try:
        if args.gradient_checkpointing:
            given = {"use_reentrant": True} | (args.gradient_checkpointing_kwargs or {})
            checkpoint(stand_in, torch.ones(1, requires_grad=True), **given)
    except REFUSALS as error:
        raise UserError(f"gradient_checkpointing_kwargs: {args.gradient_checkpointing_kwargs}: {error}") from error
    if args.world_size == 1 and args.deepspeed_plugin is None:
        try:
            build_trainer(args, stand_in)
        except REFUSALS as error:
            defaults = {f.name: f.default for f in fields(args) if getattr(args, f.name) != f.default != MISSING}
            key = culprit(
                defaults,
                lambda kept: build_trainer(
                    with_changes(args, **{name: defaults[name] for name in defaults.keys() - kept.keys()}), stand_in
                ),
            )
            raise UserError(f"{key or 'these settings do not work'}: {error}") from error


def build_trainer(args: TrainingArguments, stand_in: torch.nn.Module) -> None:
    """Make transformers' trainer and its batches, without what it would write or change around it."""
    dry = with_changes(
        args, output_dir=".", report_to=[], push_to_hub=False, train_sampling_strategy="random",
        label_smoothing_factor=0, full_determinism=False, accelerator_config=copy.deepcopy(args.accelerator_config),
    )  # fmt: skip
    Trainer(stand_in, dry, train_dataset=[{}], eval_dataset=[{}]).get_train_dataloader()


def with_changes(args: TrainingArguments, **changes: Any) -> TrainingArguments:
    changed = copy.copy(args)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed
