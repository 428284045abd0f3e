"""What every run_*.py shares: checks before anything slow, and the start-up summary."""

import math
import os
import random
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from simpo.config import DataArguments, ModelArguments
from simpo.console import UserError, say, warn
from simpo.data.load import PAIR, load_rows
from simpo.data.pairs import format_pairs
from simpo.files import weights_digest
from simpo.folder import shorten
from simpo.logps.attention import attention_name, branches_of
from simpo.logps.fused import choose_path
from simpo.train.checks import check_settings
from simpo.train.config import PreferenceConfig
from simpo.train.launch_plan import planned_launch
from simpo.train.model import model_identity
from simpo.train.model_on_paper import check_resumed_adapters
from simpo.train.progress import described
from simpo.train.published import PAIRS_PER_STEP, published_run
from simpo.train.rerun import take_up
from simpo.train.trainer import PreferenceTrainer

# The published files (SimPO's, its baselines', WPO's): 128 pairs per optimizer step, whatever the number of GPUs.
PAPER_CONFIGS = re.compile(r"(mistral-7b|llama-3-8b|gemma-2-9b)-(base|instruct|it)-\w+(-v2)?|mistral|llama3_instruct")
SHOWN = 160  # characters of a sample


def start_run(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, objective: str
) -> str | None:
    """Check what can be checked at once, seed, and return the checkpoint to resume from (None: start anew).

    Raises:
        Done: output_dir holds this run, finished.
        UserError: a setting cannot work, or output_dir belongs to another run or is being written to (see `take_up`).
    """
    # torch's own deprecations, repeated by DeepSpeed in every step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    torch.backends.cuda.enable_cudnn_sdp(False)  # sdpa's first choice on an H100 plans anew for every shape
    check_settings(model_args, data_args, args, objective)
    if args.hub_token:  # the trainer saves its arguments beside the weights, which may be published
        os.environ["HF_TOKEN"], args.hub_token = args.hub_token, None
    if isinstance(args, PreferenceConfig) and not model_args.use_peft:
        highest = args.declaration.highest_learning_rate
        if args.learning_rate > 2 * highest:
            warn(
                f"learning_rate {args.learning_rate:g} is high for full fine-tuning: published rates for {objective} "
                f"end at {highest:g}; too high a rate gives repeating, incoherent text"
            )
    set_seed(args.seed)
    checkpoint = take_up(model_args, data_args, args, run_identity(model_args, objective))
    check_resumed_adapters(checkpoint, model_args)
    return checkpoint


def run_identity(model_args: ModelArguments, objective: str) -> dict[str, Any]:
    """What a run and the checkpoints that it resumes from must have in common."""
    return {
        "objective": objective,
        "model": model_identity(model_args.model_name_or_path),
        "weights": weights_digest(model_args.model_name_or_path),
        "use_peft": model_args.use_peft,
    } | ({"lora_target_modules": model_args.lora_target_modules} if model_args.use_peft else {})


def load_pairs(data_args: DataArguments, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Load the preference datasets and render them to text.

    Raises:
        UserError: see `load_splits` and `format_pairs`.
    """
    with args.main_process_first(desc="loading data"):
        return format_pairs(load_splits(data_args, args, "chosen"), tokenizer, data_args)


def load_splits(
    data_args: DataArguments, args: TrainingArguments, column: Literal["chosen", "messages"]
) -> DatasetDict:
    """Load the rows to train on, and those to evaluate on; where there are none, evaluation is turned off.

    Args:
        column: what the rows must have: pairs, or conversations.

    Raises:
        UserError: see `load_rows`; or no split is to be trained on.
    """
    if args.dataset_num_proc is None:
        args.dataset_num_proc = data_args.preprocessing_num_workers
    columns = PAIR if column == "chosen" else (column,)
    splits = load_rows(data_args, columns_to_keep=[*columns, "system", "tools"])
    if "train" not in splits:
        raise UserError("dataset_splits: no split holds 'train' in its name, so there is nothing to train on")
    if "test" not in splits and args.do_eval:
        warn("dataset_splits names no test split: training without evaluation")
        args.do_eval, args.eval_strategy = False, "no"
    return splits


def show_summary(trainer: PreferenceTrainer, settings: Mapping[str, Any]) -> None:
    """Print what is about to happen: model, data, steps, the loss to expect, and three rows as the model sees them.

    Args:
        settings: see `settings_of`.
    """
    args, model = trainer.args, trainer.model
    trained = sum(
        p.numel() if not hasattr(p, "ds_numel") else p.ds_numel for p in model.parameters() if p.requires_grad
    )
    processes, pairs_per_step = planned_launch(args).processes, pairs_of_a_step(args)
    steps = args.max_steps
    if steps <= 0:
        rows = trainer.data_reports["train"].rows
        # `drop_partial_step`: micro-batches of all processes, and whole steps of them
        micro_batches = -(-rows // (args.per_device_train_batch_size * processes))
        per_epoch = micro_batches / args.gradient_accumulation_steps
        steps = int((math.floor if args.drop_partial_step else math.ceil)(per_epoch) * args.num_train_epochs)
    tokens = args.max_tokens_per_micro_batch
    by_tokens = "" if tokens is None else f", in micro-batches of at most {tokens:,} tokens"
    path, attention = choose_path(model, args), attention_name(model.config)
    by_spans = path.shared_prompt or path.padding_free
    lines = {
        "model": f"{model.config._name_or_path} ({trained:,} trained weights, {model.dtype}, "
        f"{args.mixed_precision} mixed precision, {attention} attention)",
        "log-probs": f"{path} (attending {branches_of(attention).how})" if by_spans else str(path),
        "objective": f"{trainer.objective.name} ({listed(trainer.objective_settings())})",
        **{f"{split} data": str(report) for split, report in trainer.data_reports.items()},
        "step": f"{pairs_per_step} pairs ({processes} processes x {args.per_device_train_batch_size} x "
        f"{args.gradient_accumulation_steps} accumulated{by_tokens}), {steps} steps, "
        f"learning rate {args.learning_rate:g}",
        "first loss": expected_first_loss(trainer),
        "output": str(Path(args.output_dir).resolve()),
    }
    if published := published_run({"objective": trainer.objective.name, **settings}, pairs_per_step):
        lines["published"] = f"as {published.name} (the released model: {published.scores})"
        if published.evaluation:
            lines["others saw"] = f"{described(published.evaluation, 'eval_')}   at {published.seen}"
    say("\n".join(f"  {name:<12}{text}" for name, text in lines.items()))
    config = Path(sys.argv[1]).stem if len(sys.argv) > 1 else ""
    if PAPER_CONFIGS.fullmatch(config) and pairs_per_step != PAIRS_PER_STEP:
        warn(
            f"{pairs_per_step} pairs per optimizer step; the paper's results need {PAIRS_PER_STEP}: "
            "adjust gradient_accumulation_steps"
        )
    show_samples(trainer)


def pairs_of_a_step(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * planned_launch(args).processes


def expected_first_loss(trainer: PreferenceTrainer) -> str:
    """What step 0 should show: the loss of pairs whose responses are equally likely, as they are on average."""
    args, objective = trainer.args, trainer.objective
    text = f"{'at most' if args.use_wpo_weighting else 'about'} {objective.first_loss(args):.3f} expected"
    if not objective.reference and objective.logps == "sum":
        text += " or more (whole responses differ by many nats)"
    if args.sft_weight > 0:
        text += f", plus {args.sft_weight:g} times sft_loss"
    if getattr(trainer.model.config, "output_router_logits", False):
        text += ", plus the router's loss"
    return text


def show_samples(trainer: PreferenceTrainer, count: int = 3) -> None:
    """Print a few training pairs decoded, cut where prompt and response meet."""
    rows, decode = trainer.train_dataset, trainer.processing_class.decode
    for index in sorted(random.Random(trainer.args.seed).sample(range(len(rows)), min(count, len(rows)))):
        row, halves = rows[index], []
        for name in ("chosen", "rejected"):
            ids, labels = row[f"{name}_input_ids"], row[f"{name}_labels"]
            start = sum(label == trainer.args.label_pad_token_id for label in labels)
            halves.append([decode(part, clean_up_tokenization_spaces=False) for part in (ids[:start], ids[start:])])
        prompts, (chosen, rejected) = zip(*halves, strict=True)
        say(f"  row {index} of the training data")
        for prompt in dict.fromkeys(prompts):  # one, unless the two were cut differently
            say(f"    prompt    {shorten(prompt, SHOWN)}")
        say(f"    chosen    {shorten(chosen, SHOWN)}\n    rejected  {shorten(rejected, SHOWN)}")


def listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
