"""Check and record what a run over several rounds is made with: the first step of run_rounds.sh.

    python rounds.py MODEL DATA OUT      (settings from the environment: see run_rounds.sh)

Writes to OUT, before anything is decoded:
    rounds.json       what all rounds have in common, with digests of the model and of the prompts; a later run with
                      other settings is refused. How many machines, GPUs and rows at a time is not part of it
    held_out.jsonl    the prompts to measure with: {prompt, and the columns that decode keeps}
    training.yaml     CONFIG with TRAIN_ARGS, the objective and the reference model: what every round trains with
    held_out/decode.yaml, held_out/annotate.yaml    DECODE_ARGS and ANNOTATE_ARGS, with what measuring changes in them
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from conversations import Prompt, prompt_digest, prompt_text, to_json
from decode import DecodeArguments, choose_prompts
from post_process import PostProcessArguments
from prompts import load_prompts
from reward_model_annotate import AnnotateArguments
from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.config.reading import read_yaml, split_overrides
from simpo.console import ArgumentParser, UserError, command, say, warn
from simpo.files import weights_digest, whole_file, write_rows
from simpo.folder import check_settings, lock_folder
from simpo.model_files import check_whole_model
from simpo.objectives import get_objective
from simpo.train.config import config_class
from simpo.train.rerun import INDIFFERENT

RECORD = "rounds.json"
SEED_STEP = 1000  # as in run_rounds.sh
MOST_ROUNDS = 100
LEAST_PROMPTS = 2
# of the options, those that do not decide what comes out
PLACES = {"model", "data_dir", "output_dir", "generation_file", "generation_file_dir", "reward_model"}
MACHINES = {
    *("tensor_parallel_size", "data_parallel_size", "max_num_seqs", "gpu_memory_utilization", "ray_address"),
    *("attention_backend", "trust_remote_code", "retry_failed", "batch_tokens", "time_limit", "dry_run"),
    *("base_url", "concurrency", "timeout"),
}
# of training's: so that what does not fit into memory, or was not saved often enough, can be mended between rounds
TRAINING_MACHINES = INDIFFERENT | {
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "use_cpu"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "logits_memory", "report_to", "run_name"),
    *("dataset_mixer", "dataset_splits", "output_dir"),
}
LOGS = ("save_", "logging_", "log_", "eval_", "push_to_hub", "hub_")


@command
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("model", help="hub name or folder")
    parser.add_argument("data", help="hub name, folder, or a file of prompts")
    parser.add_argument("output", type=Path, help="folder of all rounds")
    args = parser.parse_args()
    asked = dict(os.environ)

    rounds = read_rounds(asked["ROUNDS"])
    for name, choices in (("PROMPTS", ("split", "all")), ("REFERENCE", ("previous", "start"))):
        if asked[name] not in choices:
            raise UserError(f"{name}: {asked[name]!r} is neither {choices[0]} nor {choices[1]}")
    training = read_training(asked["CONFIG"], asked["TRAIN_ARGS"], args.model, asked["REFERENCE"])
    check_whole_model(args.model, "MODEL")
    decode, post_process, annotate = read_all_options(asked, args.data, rounds)
    prompts, held_out = choose_all_prompts(decode, asked)
    check_rounds(prompts, rounds, asked["PROMPTS"])
    record = {
        "model": resolved(args.model),
        "weights": weights_digest(args.model),
        "data": resolved(args.data),
        "train_split": asked["TRAIN_SPLIT"],
        "test_split": asked["TEST_SPLIT"],
        "prompts_digest": digest(prompts),
        "held_out_digest": digest(held_out),
        "rounds": rounds,
        "prompts": asked["PROMPTS"],
        "seeds": decode.seed[: len(decode.seed) // rounds],
        "reference": asked["REFERENCE"],
        "reward": resolved(asked["REWARD_MODEL"]),
        "decode": what_decides(replace(decode, seed=DecodeArguments().seed)),
        "post_process": what_decides(post_process),
        "annotate": what_decides(annotate),
        "training": {k: v for k, v in training.items() if k not in TRAINING_MACHINES and not k.startswith(LOGS)},
    }
    folder = args.output
    with lock_folder(folder):
        check_settings(folder / RECORD, record, (folder / RECORD).exists() or (folder / "round_1").exists())
        write_rows(folder / "held_out.jsonl", [{"prompt": to_json(p)} | columns for p, columns in held_out.items()])
        write_yaml(folder / "training.yaml", training)
        measure = {"data_dir": str(folder / "held_out.jsonl"), "prompt_column": "prompt", "temperature": 0, "seed": 0}
        write_yaml(folder / "held_out" / "decode.yaml", read_words("DECODE_ARGS", asked["DECODE_ARGS"]) | measure)
        score = {"scores_only": True, "extra_responses": None, "test_generation_file": None}
        write_yaml(folder / "held_out" / "annotate.yaml", read_words("ANNOTATE_ARGS", asked["ANNOTATE_ARGS"]) | score)
    counts = f"{len(prompts)} prompts ({asked['PROMPTS']}), {len(held_out)} held out"
    say(f"{rounds} round{'' if rounds == 1 else 's'} over {counts}, training with {training['objective']}")


def read_rounds(text: str) -> int:
    """Raises UserError for what is no number of rounds."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_ROUNDS:
        raise UserError(f"ROUNDS: {text!r}: give a number from 1 to {MOST_ROUNDS}")
    return int(text)


def read_training(config: str, more: str, model: str, reference: str) -> dict[str, Any]:
    """CONFIG, and over it TRAIN_ARGS, with the objective and its reference model.

    Raises:
        UserError: no such file, not YAML, a setting that training refuses, or nothing says for which objective it is.
    """
    if not config:
        raise UserError("CONFIG: name the training's YAML file, such as CONFIG=training_configs/NAME.yaml")
    changes = read_words("TRAIN_ARGS", more)
    settings = read_yaml(config) | changes
    if "objective" not in settings:
        if not {"gamma_beta_ratio", "gamma"} & settings.keys():
            raise UserError(f"CONFIG: {config} names no objective, nor does TRAIN_ARGS: add --objective=NAME to that")
        settings["objective"] = "simpo"
    objective = get_objective(str(settings["objective"]))
    if reference == "start":
        if objective.reference:
            settings["ref_model_name_or_path"] = model
        else:
            warn(f"REFERENCE=start has no effect: {objective.name} has no reference model")
    # what training would refuse shows now, not after hours of decoding
    parser = H4ArgumentParser((ModelArguments, DataArguments, config_class(objective.name)))
    on_paper = {} if torch.accelerator.is_available() else {"use_cpu": True}
    named = [] if "objective" in changes else [f"--objective={objective.name}"]
    parser.parse([config, *more.split(), *named], defaults=on_paper)
    return settings


def read_all_options(
    asked: Mapping[str, str], data: str, rounds: int
) -> tuple[DecodeArguments, PostProcessArguments, AnnotateArguments]:
    """What the three scripts will be given, decode with the seeds of all rounds.

    Raises:
        UserError: a script would refuse it.
    """
    seeds = all_seeds(asked["SEEDS"], rounds)
    decode = read_options("DECODE_ARGS", DecodeArguments, asked["DECODE_ARGS"], data_dir=data, seed=seeds)
    if decode.part or decode.exclude:
        raise UserError("DECODE_ARGS: part and exclude are what the rounds set: PROMPTS=split, HELD_OUT")
    decode.split = asked["TRAIN_SPLIT"]
    given = {"reward_model": asked["REWARD_MODEL"]}
    given |= {} if Path(data).is_file() else {"test_generation_file": "test"}
    annotate = read_options("ANNOTATE_ARGS", AnnotateArguments, asked["ANNOTATE_ARGS"], **given)
    return decode, read_options("POST_PROCESS_ARGS", PostProcessArguments, asked["POST_PROCESS_ARGS"]), annotate


def read_words(name: str, words: str) -> dict[str, Any]:
    """The keys and values of a variable of the environment, which may begin with a YAML file.

    Raises:
        UserError: it holds something else.
    """
    argv = words.split()
    try:
        settings = read_yaml(argv.pop(0)) if argv and not argv[0].startswith("--") else {}
        return settings | split_overrides(argv)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


OWN = {  # options that the rounds give to each script
    "DECODE_ARGS": {"model", "data_dir", "split", "seed", "output_dir"},
    "POST_PROCESS_ARGS": {"generation_file_dir", "output_dir"},
    "ANNOTATE_ARGS": {"generation_file", "test_generation_file", "reward_model", "output_dir"},
}


def read_options(name: str, kind: type, words: str, **given: Any) -> Any:
    """The options that a variable of the environment holds, as its script reads them.

    Raises:
        UserError: the script would refuse them.
    """
    if taken := sorted(OWN[name] & read_words(name, words).keys()):
        raise UserError(f"{name}: {', '.join(taken)}: leave it out, the rounds set it")
    argv = [*words.split(), *(f"--{key}={value}" for key, value in given.items())]
    try:
        return H4ArgumentParser(kind).parse(argv)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def all_seeds(text: str, rounds: int) -> str:
    """The seeds of all rounds.

    Raises:
        UserError: not numbers.
    """
    seeds = text.replace(",", " ").split()
    if not seeds or not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"SEEDS: {text!r}: give numbers, such as SEEDS='13 21 42'")
    if len(seeds) < 2:
        raise UserError("SEEDS: pairs need the responses of two seeds or more")
    every = [int(seed) + SEED_STEP * number for number in range(rounds) for seed in seeds]
    if len(set(every)) < len(every):
        raise UserError(f"SEEDS: {text}: two are the same, or meet when a round adds {SEED_STEP}")
    return ",".join(map(str, every))


def choose_all_prompts(
    decode: DecodeArguments, asked: Mapping[str, str]
) -> tuple[dict[Prompt, dict[str, Any]], dict[Prompt, dict[str, Any]]]:
    """The prompts of all rounds, and those to measure with.

    Raises:
        UserError: see `choose_prompts` and `choose_held_out`.
    """
    prompts = choose_prompts(decode)
    held_out = choose_held_out(prompts, decode, asked)
    return {prompt: columns for prompt, columns in prompts.items() if prompt not in held_out}, held_out


def choose_held_out(
    prompts: dict[Prompt, dict[str, Any]], decode: DecodeArguments, asked: Mapping[str, str]
) -> dict[Prompt, dict[str, Any]]:
    """The prompts to measure with: HELD_OUT, or the test split, or a part of the prompts by a hash of each.

    Raises:
        UserError: there are none, or HELD_OUT_FRACTION is no fraction.
    """
    source, keep = asked["HELD_OUT"], decode.keep_columns or ()
    if not source and not Path(decode.data_dir).is_file():
        source = decode.data_dir
    if source:
        return load_prompts(source, asked["TEST_SPLIT"], decode.prompt_column, decode.limit, keep)
    try:
        fraction = float(asked["HELD_OUT_FRACTION"])
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise UserError(f"HELD_OUT_FRACTION: {asked['HELD_OUT_FRACTION']!r}: give a number between 0 and 1")
    order = sorted(prompts, key=prompt_digest)
    return {prompt: prompts[prompt] for prompt in order[: max(1, round(fraction * len(order)))]}


def check_rounds(prompts: dict[Prompt, dict[str, Any]], rounds: int, rule: str) -> None:
    """Every round needs prompts.

    Raises:
        UserError: one has too few to make a pair for each of its two splits.
    """
    sizes = [len(prompts)]
    if rule == "split":
        sizes = [sum(prompt_digest(prompt) % rounds == number for prompt in prompts) for number in range(rounds)]
    if min(sizes) < LEAST_PROMPTS:
        raise UserError(
            f"ROUNDS={rounds}: round {sizes.index(min(sizes)) + 1} has {min(sizes)} of the {len(prompts)} prompts that "
            f"are not held out, and needs {LEAST_PROMPTS}: fewer rounds, more prompts, or PROMPTS=all"
        )


def what_decides(options: Any) -> dict[str, Any]:
    """The options that decide what comes out, but for defaults."""
    default = type(options)()
    return {
        key: value
        for key, value in asdict(options).items()
        if key not in PLACES | MACHINES and value != getattr(default, key)
    }


def write_yaml(path: Path, settings: dict[str, Any]) -> None:
    with whole_file(path) as file:
        yaml.safe_dump(settings, file, sort_keys=False)


def resolved(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def digest(prompts: Iterable[Prompt]) -> str:
    whole = hashlib.sha256()
    for prompt in sorted(prompts, key=prompt_text):
        whole.update(prompt_digest(prompt).to_bytes(32))
    return whole.hexdigest()[:16]


if __name__ == "__main__":
    main()
