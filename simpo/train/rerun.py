"""What an output folder knows of an earlier run: that it is finished, where it stopped, and what it was made with."""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainingArguments

from simpo.chat.variables import keep_date
from simpo.config import DataArguments, ModelArguments
from simpo.console import Done, UserError, hold, is_main_process, warn
from simpo.files import flush_to_disk, read_own, whole_file
from simpo.folder import LOCK, check_shared, check_writable, lock_folder, shorten
from simpo.train.checkpoints import (
    DIGESTS,
    STATE,
    checkpoints_in,
    get_checkpoint,
    json_flaw,
    missing_part,
    read_state,
    torn_files,
    weights_flaw,
    write_digests,
)
from simpo.train.config import PreferenceConfig

RUN_CONFIG = "run_config.yaml"
RESULTS = (STATE, "*_results.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Of transformers' settings, those that decide what the weights become.
DECISIVE = {
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy", "dataloader_drop_last"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("seed", "data_seed", "bf16", "fp16", "neftune_noise_alpha", "load_best_model_at_end", "metric_for_best_model"),
}
# Of the other settings, those that do not; the model is compared apart (`check_same_run`).
INDIFFERENT = {
    *("model_name_or_path", "model_init_kwargs", "trust_remote_code", "attn_implementation"),
    *("preprocessing_num_workers", "dataset_num_proc", "generate_during_eval", "precompute_ref_log_probs"),
    *("fused_logps", "shared_prompt", "padding_free", "logits_memory", "max_tokens_per_micro_batch"),
    *("dry_run", "dry_run_gpu_gb"),
}

T = TypeVar("T")


def take_up(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, identity: dict[str, Any]
) -> str | None:
    """Hold output_dir until the command ends, and return the checkpoint to resume from (None: start anew).

    The main process decides for all. A date that an earlier run wrote into its prompts is kept (`data_args`).

    Args:
        identity: what a run and the checkpoints that it resumes from must have in common.

    Raises:
        Done: the run is finished.
        UserError: another run is writing there; what is there is of another run, or finished with other settings; not
            every process sees the folder, or its part of the checkpoint; or they were started with different settings.
    """

    dry = isinstance(args, PreferenceConfig) and args.dry_run

    def decide() -> tuple[str | None, dict[str, Any], dict[str, Any]]:
        folder = Path(args.output_dir)
        if not dry or (folder / LOCK).exists():
            hold(lock_folder(folder))
        else:
            check_writable(folder)
        record = read_run_config(args)
        data_args.chat_template_kwargs = keep_date(data_args.chat_template_kwargs, recorded_variables(record))
        changes = changed_settings(record, model_args, data_args, args)
        if args.resume_from_checkpoint in (None, "", "true", "True") and is_finished(Path(args.output_dir)):
            check_same_run(args, record, identity)
            leave_finished(args, changes)
        checkpoint = get_checkpoint(args)
        if checkpoint is not None:
            check_same_run(args, record, identity)
            if changes:
                warn(f"resuming with other settings than before: {'; '.join(changes)}")
        mine = {"identity": identity, "settings": settings_of(model_args, data_args, args)}
        return checkpoint, recorded_variables(record), mine

    checkpoint, variables, of_main = from_main_process(decide)
    if not dry:
        check_shared(Path(args.output_dir))
    data_args.chat_template_kwargs = keep_date(data_args.chat_template_kwargs, variables)  # one date in all processes
    mine = settings_of(model_args, data_args, args)
    apart = [
        f"{key}: {shorten(there)} and {shorten(here)}" for key, there, here in differences(of_main["settings"], mine)
    ]
    if of_main["identity"]["weights"] != identity["weights"]:
        apart.append("the model's files")
    refuse_any(f"process {args.process_index} was not started as process 0 was ({'; '.join(apart)})" if apart else None)
    if checkpoint is not None:
        flaw = missing_part(Path(checkpoint), args.process_index, args.world_size)
        refuse_any(f"resume_from_checkpoint: {flaw}" if flaw else None)
    return checkpoint


def refuse_any(flaw: str | None) -> None:
    """Raise in every process what is wrong in one: the first one's.

    Raises:
        UserError: something is wrong in some process.
    """
    for found in gather_object([flaw]):
        if found is not None:
            raise UserError(found)


def from_main_process(decide: Callable[[], T]) -> T:
    """What a function returns in the main process, where alone it runs, in every process; or what it raises."""
    outcome: list[Any] = [None]
    if is_main_process():
        try:
            outcome = [decide()]
        except (UserError, Done) as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


# ---- finished? ---------------------------------------------------------------------------------------------------


def mark_finished(folder: Path) -> None:
    """Record what makes a finished run's result: the last thing that a run writes."""
    for path in folder.iterdir():
        if path.is_file():
            flush_to_disk(path)
    write_digests(folder, *WEIGHTS, *RESULTS)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run. If parts of its result are torn and can be made again: no."""
    if not (folder / DIGESTS).exists():  # of an older version: its trainer's state came last
        state = read_state(folder)
        return state is not None and 0 < state.get("max_steps", 0) <= state["global_step"] and not weights_flaw(folder)
    torn = torn_files(folder) or [flaw for flaw in [json_flaw(folder)] if flaw]
    if not torn:
        return True
    newest = next((state for path in checkpoints_in(str(folder)) if (state := read_state(path))), {})
    again = 0 < newest.get("max_steps", 0) <= newest.get("global_step", 0)
    weights_are_whole = not any("safetensors" in flaw or DIGESTS in flaw for flaw in torn) and not weights_flaw(folder)
    warn(f"{folder}: {'; '.join(torn)}" + ("" if again or not weights_are_whole else "; the model is whole"))
    return weights_are_whole and not again


def leave_finished(args: TrainingArguments, changes: list[str]) -> None:
    """Say that nothing is left to do.

    Raises:
        Done: always, but for
        UserError: the settings have changed.
    """
    if not changes:
        raise Done(
            f"{args.output_dir} holds this run, finished: nothing to do (to train again, choose another output_dir)"
        )
    newest = next(iter(checkpoints_in(args.output_dir)), None)
    on = f", or go on from its end with --resume_from_checkpoint={newest}" if newest else ""
    raise UserError(
        f"output_dir: {args.output_dir} holds a finished run of other settings ({'; '.join(changes)}); choose another "
        f"output_dir, or remove it{on}"
    )


# ---- the same run? -----------------------------------------------------------------------------------------------


def check_same_run(args: TrainingArguments, record: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse to go on with what was made from another model or with another objective.

    Raises:
        UserError: output_dir belongs to another run.
    """
    known = record.get("identity") or {}
    for key, value in identity.items():
        if key in known and known[key] != value:
            raise UserError(
                f"output_dir: {args.output_dir} holds a checkpoint of another run ({key}: {known[key]}, now {value}); "
                "choose another output_dir or remove it"
            )


def changed_settings(
    record: dict[str, Any], model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments
) -> list[str]:
    """What would train other weights than the recorded settings: "KEY was X, now Y" each."""
    now, before = settings_of(model_args, data_args, args), record.get("settings") or {}
    return [f"{key} was {shorten(was)}, now {shorten(value)}" for key, was, value in differences(before, now)]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs between two runs' settings and decides what the weights become: (key, before, now) each."""
    library = {field.name for field in dataclasses.fields(TrainingArguments)}
    return [
        (key, before[key], value)
        for key, value in yaml.safe_load(yaml.safe_dump(now)).items()
        if key in before and before[key] != value
        if (key in DECISIVE if key in library else key not in INDIFFERENT)
    ]


def settings_of(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> dict[str, Any]:
    return {**asdict(model_args), **asdict(data_args), **args.to_sanitized_dict()}


# ---- the record --------------------------------------------------------------------------------------------------


def read_run_config(args: TrainingArguments) -> dict[str, Any]:
    """What `write_run_config` recorded in output_dir; nothing where there is no whole record."""
    record = read_own(Path(args.output_dir) / RUN_CONFIG, parse_yaml) or {}
    return {key: value for key, value in record.items() if isinstance(value, dict)}


def parse_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError("torn") from error


def recorded_variables(record: dict[str, Any]) -> dict[str, Any] | None:
    variables = record.get("settings", {}).get("chat_template_kwargs")
    return variables if isinstance(variables, dict) else None


def write_run_config(args: TrainingArguments, identity: dict[str, Any], settings: dict[str, Any]) -> None:
    """Record what a run was started with in output_dir/run_config.yaml."""
    with whole_file(Path(args.output_dir) / RUN_CONFIG) as file:
        yaml.safe_dump({"identity": identity, "settings": settings}, file, sort_keys=False)
