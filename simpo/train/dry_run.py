"""`--dry_run`: everything that a run does before its first step, on a model without weights, and what it will need."""

import dataclasses
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from simpo.config import ModelArguments
from simpo.console import UserError, say
from simpo.logps.attention import attention_name
from simpo.logps.fused import FastPath, base_model, choose_path
from simpo.train.config import PreferenceConfig
from simpo.train.launch_plan import ALL, is_planned_elsewhere, planned_launch
from simpo.train.ledger import Plan, Shape, ledger
from simpo.train.model import choose_dtype
from simpo.train.model_on_paper import model_on_paper
from simpo.train.token_batches import pair_lengths, tokens_of_pairs
from simpo.train.trainer import PreferenceTrainer
from simpo.train.weights import get_model_config, needs_gpu

BITS = {"load_in_4bit": 4.57, "load_in_8bit": 8.0}  # of a quantized weight, its constants included
MOST_GPUS = 64


def policy_on_paper(model_args: ModelArguments, args: PreferenceConfig) -> PreTrainedModel:
    """The policy without its weights, on the meta device.

    Raises:
        UserError: no such model.
    """
    config, attention = get_model_config(model_args), model_args.attn_implementation
    elsewhere = is_planned_elsewhere(args) and needs_gpu(attention)
    model = model_on_paper(config, None if elsewhere else attention)
    if model is None:  # code of its own
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=model_args.trust_remote_code)
    dtype = choose_dtype(model_args, args)
    model.to(config.dtype or torch.float32 if dtype == "auto" else dtype)
    model.config._name_or_path = model_args.model_name_or_path
    if elsewhere:
        model.config._attn_implementation = attention
    model.config.use_cache = not args.gradient_checkpointing
    return model


def trainer_on_paper(trainer_class: type[PreferenceTrainer]) -> type[PreferenceTrainer]:
    """The trainer of a model without weights, which is not moved, computes nothing and leaves nothing behind."""

    class TrainerOnPaper(trainer_class):
        def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
            pass

        def _prepare_references(self, ref_model: Any) -> None:
            self.reference = self.reference_point = None

        def init_hf_repo(self, token: str | None = None) -> None:
            pass

    return TrainerOnPaper


def report_needs(trainer: PreferenceTrainer, model_args: ModelArguments) -> None:
    """Print tokens per step and the ledger of memory.

    Raises:
        UserError: it does not fit; names what to change.
    """
    args = trainer.args
    plan, card = plan_of(trainer, model_args), card_of(args)
    path = choose_path(trainer.model, args)
    mean = float(np.mean(tokens_of_pairs(trainer.train_dataset, path)))
    pairs = plan.pairs * plan.accumulation * plan.launch.processes
    tokens, labels, _ = plan.micro_batch(plan.pairs)
    largest = f"{tokens:,} in the largest micro-batch, {labels:,} of them labels"
    say(f"  tokens      {mean * pairs:,.0f} a step (mean), {largest}")
    needs, moment = ledger(plan, card)
    total = sum(needs.values())
    place = "process" if plan.launch.on_cpu else "GPU"
    say(f"  memory      per {place} ({plan.launch}), calculated, at its peak in {moment}")
    say("\n".join(f"    {name:<28}{needed / 1e9:8.2f} GB" for name, needed in {**needs, "together": total}.items()))
    if card is None:
        say(f"    (--dry_run_gpu_gb=80 compares with {place}s of 80 GB)")
    elif total > card:
        raise UserError(
            f"memory: {total / 1e9:.1f} GB per {place} needed, {card / 1e9:.1f} there: {what_to_change(plan, card)}"
        )
    else:
        say(f"    {'there':<28}{card / 1e9:8.2f} GB")


def card_of(args: PreferenceConfig) -> float | None:
    """Bytes that each process has: as given, or what is here; None where nothing tells."""
    if args.dry_run_gpu_gb is not None:
        return args.dry_run_gpu_gb * 1e9
    launch = planned_launch(args)
    if launch.on_cpu:
        return psutil.virtual_memory().available / launch.processes
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def what_to_change(plan: Plan, card: float) -> str:
    """The settings that make it fit, the cheapest first."""
    launch = plan.launch
    changes = {
        "gradient_checkpointing: true": {"checkpointing": True},
        f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {plan.pairs * plan.accumulation}": {
            "pairs": 1, "accumulation": plan.pairs * plan.accumulation,
        },
        "precompute_ref_log_probs: true": {"reference": 0},
        "logits_memory: 0": {"logits_memory": 0.0},
    }  # fmt: skip
    if launch.processes > 1 and not launch.shards >= ALL:
        zero3 = dataclasses.replace(launch, how="ZeRO-3", shards=ALL, keeps_weights=False)
        changes["accelerate_configs/deepspeed_zero3.yaml"] = {"launch": zero3}
    names: list[str] = []
    for name, change in changes.items():
        changed = dataclasses.replace(plan, **change)
        if needed(changed, card) < needed(plan, card):
            plan, names = changed, [*names, name]
        if needed(plan, card) <= card:
            return ", ".join(names)
    count = 2 * plan.launch.processes
    while plan.launch.shards >= ALL and count <= MOST_GPUS:
        if needed(dataclasses.replace(plan, launch=dataclasses.replace(plan.launch, processes=count)), card) <= card:
            return ", ".join([*names, f"{count} processes"])
        count *= 2
    shards = "" if plan.launch.shards >= ALL else "several GPUs with accelerate_configs/deepspeed_zero3.yaml, or "
    return ", ".join([*names, f"{shards}use_peft: true (LoRA), a smaller max_length or a smaller model"])


def needed(plan: Plan, card: float) -> float:
    return sum(ledger(plan, card)[0].values())


def plan_of(trainer: PreferenceTrainer, model_args: ModelArguments) -> Plan:
    """The run in numbers."""
    args, launch = trainer.args, planned_launch(trainer.args)
    path, shape = choose_path(trainer.model, args), shape_of(trainer.model, model_args)
    pairs, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    mixed = args.bf16 or args.fp16
    reference = 0
    if trainer.objective.reference and not args.precompute_ref_log_probs:
        is_copy = not model_args.use_peft or args.ref_model_name_or_path is not None
        reference = is_copy * (2 if args.bf16 else 4) * (shape.layers * shape.layer + shape.outside)
    return Plan(
        shape=shape,
        launch=launch,
        micro_batch=micro_batches(trainer.train_dataset, path, args, pairs * accumulation),
        pairs=pairs,
        accumulation=accumulation,
        mixed=mixed,
        checkpointing=args.gradient_checkpointing,
        fused=path.fused,
        logits_memory=args.logits_memory,
        optim=args.optim.value,
        reference=reference,
    )


def shape_of(model: nn.Module, model_args: ModelArguments) -> Shape:
    core = base_model(model)
    config, head = core.config.get_text_config(), core.get_output_embeddings()
    layers = config.num_hidden_layers
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    if experts := getattr(config, "num_experts_per_tok", None):
        inner = experts * (getattr(config, "moe_intermediate_size", None) or inner)
    modules = dict(model.named_modules())
    gated = any(name.endswith(("gate_proj", "gate_up_proj", "w3", "experts")) for name in modules)
    stacked = max((len(m) for m in modules.values() if isinstance(m, nn.ModuleList)), default=layers)
    in_layers = sum(
        p.numel()
        for m in modules.values()
        if isinstance(m, nn.ModuleList) and len(m) == stacked
        for p in m.parameters()
    )
    bits = next((bits for key, bits in BITS.items() if getattr(model_args, key)), None)
    linear = {id(m.weight) for m in modules.values() if isinstance(m, nn.Linear) and m is not head}
    frozen = 0.0
    for weight in model.parameters():
        if not weight.requires_grad:
            rest = 4 if bits else weight.element_size()  # PEFT makes what is not quantized float32
            frozen += weight.numel() * (bits / 8 if bits and id(weight) in linear else rest)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    adapted = sum(m.in_features for m in modules.values() if hasattr(m, "lora_A") and hasattr(m, "in_features"))
    return Shape(
        trained=sum(weight.numel() for weight in trained),
        trained_bytes=sum(weight.nbytes for weight in trained),
        frozen_bytes=int(frozen),
        layer=in_layers // layers,
        outside=sum(weight.numel() for weight in model.parameters()) - in_layers,
        head_is_trained=any(weight.requires_grad for weight in head.parameters()),
        layers=layers,
        hidden=config.hidden_size,
        queries=heads * width,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * width,
        heads=heads,
        mlp=(4 if gated else 2) * inner,
        adapted=adapted // layers,
        vocabulary=config.vocab_size,
        eager=attention_name(core.config) == "eager",
    )


def micro_batches(dataset: Dataset, path: FastPath, args: PreferenceConfig, most: int) -> Any:
    """A function from pairs to (tokens, labels, longest row) of a micro-batch of the longest ones: an upper bound.

    Args:
        most: pairs of a step, which `max_tokens_per_micro_batch` groups.
    """
    chosen, rejected, prompt = pair_lengths(dataset)
    tokens = np.sort(tokens_of_pairs(dataset, path))[::-1]
    labels = np.sort(chosen + rejected - 2 * prompt)[::-1]
    longest = int(np.maximum(chosen, rejected).max())

    def of(pairs: int) -> tuple[int, int, int]:
        pairs = most if args.max_tokens_per_micro_batch else pairs
        count = int(tokens[:pairs].sum() if path.padding_free else pairs * tokens[0])
        limit = args.max_tokens_per_micro_batch or count
        return min(count, limit), min(int(labels[:pairs].sum()), limit), longest

    return of
