"""Training itself, and what a finished run leaves: every file of it is there when the last one is written."""

import errno
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.config import DataArguments, ModelArguments
from simpo.console import UserError, say
from simpo.files import put_in_place, write_json
from simpo.train.checkpoints import STATE, WholeCheckpoints, set_folders_aside
from simpo.train.generations import mend_generations
from simpo.train.progress import described, duration, print_lines
from simpo.train.published import PublishedRun, published_run
from simpo.train.rerun import mark_finished, settings_of, write_run_config
from simpo.train.run import pairs_of_a_step, run_identity
from simpo.train.same_data import check_same_rows
from simpo.train.trainer import PreferenceTrainer

# What transformers counts from the resume on, not over the whole run.
SINCE_RESUME = ("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second")

# In what torch.save and the tokenizers raise about a disk: a RuntimeError, an Exception.
NO_TYPE = ("inline_container", "PytorchStreamWriter", "Parent directory", "(os error ")


def train_and_save(
    trainer: Trainer,
    model_args: ModelArguments,
    data_args: DataArguments,
    checkpoint: str | None,
    objective: str,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Train (or resume), save the model and its card, evaluate, save metrics and state.

    Args:
        card: arguments of the trainer's `create_model_card`; by default those of transformers'.

    Raises:
        UserError: a file cannot be written (the same command goes on from the newest checkpoint), or the processes have
            different rows.
    """
    card = card or {
        "finetuned_from": model_args.model_name_or_path,
        "dataset": list(data_args.dataset_mixer),
        "dataset_tags": list(data_args.dataset_mixer),
        "tags": [*trainer.tags],
    }
    args, folder = trainer.args, Path(trainer.args.output_dir).resolve()
    settings = settings_of(model_args, data_args, args)
    if not isinstance(trainer, PreferenceTrainer):  # which has asked before it computed anything
        check_same_rows(trainer.train_dataset, args.world_size)
    trainer.add_callback(WholeCheckpoints(trainer))
    trainer.add_callback(NoFurtherStep(trainer))
    trainer.add_callback(StopAtNaN())
    print_lines(trainer)
    with writing_below(folder):
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            set_folders_aside(folder)
            mend_generations(folder)
            write_run_config(args, run_identity(model_args, objective), settings)
            if isinstance(trainer, PreferenceTrainer):
                write_json(folder / "data_report.json", {k: asdict(v) for k, v in trainer.data_reports.items()})
        results = {"train": train(trainer, checkpoint)}
        trainer.model.config.use_cache = True  # off while training; the saved model is for generating
        if trainer.is_fsdp_enabled:  # its checkpoints may be sharded; the model is saved whole
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model()
        if (folder / "README.md").is_dir():  # the hub's library would take its path for a repository's name
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / "README.md"))
        trainer.create_model_card(**card)
        if args.do_eval:
            results["eval"] = last_evaluation(trainer)
        if trainer.is_world_process_zero():
            published = published_run({"objective": objective, **settings}, pairs_of_a_step(args))
            save_results(trainer, folder, results, published)
        if args.push_to_hub:
            trainer.push_to_hub(**card)
        trainer.accelerator.wait_for_everyone()  # all have written, and leave together: or launchers end the others
        if trainer.is_world_process_zero():
            mark_finished(folder)
    if not args.push_to_hub:
        trainer.accelerator.end_training()
    say(f"model in {folder}\nmetrics in {folder / 'all_results.json'}, per step in {folder / STATE}")


def train(trainer: Trainer, checkpoint: str | None) -> dict[str, float]:
    """Train; return the metrics of the whole run, and leave out what is known of its last part only."""
    try:
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    finally:
        close_bars(trainer)
    if checkpoint is not None:
        for part in (metrics, trainer.state.log_history[-1]):
            for name in SINCE_RESUME:
                part.pop(name, None)
    return metrics | {"train_samples": len(trainer.train_dataset)}


def close_bars(trainer: Trainer) -> None:
    """End the progress bars that an error left open, or its line would go on from theirs."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback):
            for bar in filter(None, (callback.training_bar, callback.prediction_bar)):
                bar.close()


def last_evaluation(trainer: Trainer) -> dict[str, float]:
    """The evaluation of the model that is saved; the one made while training, if that was at its step.

    The log ends with it either way, as the original's does, which evaluates a second time.
    """
    state = trainer.state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    step = state.best_global_step if best else state.global_step
    metrics: dict[str, float] = {}
    for entry in state.log_history:
        if entry["step"] == step and any(name.startswith("eval_") for name in entry):
            metrics |= {name: value for name, value in entry.items() if name != "step"}
    if metrics:
        state.log_history.append(metrics | {"step": step})
    else:
        metrics = trainer.evaluate()
    return metrics | {"eval_samples": len(trainer.eval_dataset)}


def save_results(
    trainer: Trainer, folder: Path, results: Mapping[str, Mapping[str, float]], published: PublishedRun | None
) -> None:
    """Say what the run ended with, beside what others saw; write SPLIT_results.json, all_results.json and the state."""
    together: dict[str, float] = {}
    for split, metrics in results.items():
        write_json(folder / f"{split}_results.json", dict(sorted(metrics.items())))
        together |= metrics
    write_json(folder / "all_results.json", dict(sorted(together.items())))
    took = f" in {duration(together['train_runtime'])}" if "train_runtime" in together else ""
    mean = f", mean loss {together['train_loss']:.4f}" if "train_loss" in together else ""
    say(f"trained:    {trainer.state.global_step} steps on {together['train_samples']} rows{took}{mean}")
    if "eval_samples" in together:
        say(f"evaluated:  {described(together, 'eval_')}   on {together['eval_samples']} rows")
        if published and published.evaluation:
            say(f"others saw: {described(published.evaluation, 'eval_')}   at {published.seen}")
    beside = folder / f"{STATE}.tmp"
    trainer.state.save_to_json(str(beside))
    put_in_place(beside, folder / STATE)


class NoFurtherStep(TrainerCallback):
    """Keeps a run that is resumed at its last step from making another.

    transformers asks only after a step whether it was the last.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            self.trainer._run_epoch = self.stop

    def stop(self, **kwargs: Any) -> None:
        self.trainer.control.should_training_stop = True


class StopAtNaN(TrainerCallback):
    """Ends a run whose weights a step has ruined: with a gradient that is not finite, all of them become NaN.

    transformers trains on, and logs a loss of 0. Under fp16 its scaler leaves such steps out.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not math.isfinite(norm) and not args.fp16:
            raise UserError(
                f"the gradient of step {state.global_step} is not finite ({norm:g}), and the weights are ruined: see "
                "that the model answers sensibly before it is trained, lower learning_rate, and start from a "
                "checkpoint of before it"
            )


@contextmanager
def writing_below(folder: Path) -> Iterator[None]:
    """Turn what a disk does to the libraries that write checkpoints and models into one line that names the folder."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and not any(words in str(error) for words in NO_TYPE):
            raise
        place, what = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or error
        raise UserError(f"{place}: {what}; mend that and run the same command again") from error
