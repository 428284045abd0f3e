"""Score the responses with a reward model and make pairs: the last step of on-policy preference data.

    python reward_model_annotate.py --generation_file datasets/gemma2_ultrafeedback/all_outputs.json \
        --reward_model RLHFlow/ArmoRM-Llama3-8B-v0.1 --output_dir datasets/gemma2_ultrafeedback
    accelerate launch --num_processes 8 reward_model_annotate.py ...      (one process per GPU)

Writes to output_dir:
    all_outputs_rm.json     {prompt, all_generated_responses, all_rm_scores (same order)} per prompt
    all_outputs_bin.json    the same with chosen and rejected, as [user message, assistant message], without the dropped
                            prompts. With --test_generation_file, *_rm_test.json and *_bin_test.json for its prompts
    datasets/               the rows of all_outputs_bin as train and test splits: dataset_mixer: {this folder: 1.0}
    annotate_summary.txt, annotate_summary.png    what came out
    annotate_settings.json, journal/              which model made the scores, and the scores: a stopped run continues
"""

import hashlib
import json
import math
import os
import random
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from candidates import add_responses, read_candidates
from pair_selection import Pair, max_min, random_rejected, wpo_v2
from processes import Processes, joined_processes
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, is_main_process, say
from simpo.files import weights_digest, write_json
from simpo.folder import Journal, check_settings, lock_folder

SETTINGS = "annotate_settings.json"
CHUNK = 1024  # prompts whose units are encoded and sorted by length together


@dataclass
class AnnotateArguments:
    """What to score, with which reward model, and how to choose pairs."""

    generation_file: str = field(
        default="datasets/gemma2_ultrafeedback/all_outputs.json", metadata={"help": "post_process.py's output."}
    )
    reward_model: str = field(
        default="RLHFlow/ArmoRM-Llama3-8B-v0.1",
        metadata={"help": "ArmoRM, PairRM or a sequence classifier with one label: hub name or folder."},
    )
    output_dir: str = field(default="datasets/gemma2_ultrafeedback/", metadata={"help": "Folder of the results."})
    torch_dtype: Literal["bfloat16", "float16", "float32"] = field(
        default="bfloat16", metadata={"help": "Precision of the reward model (ArmoRM's heads: always float32)."}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of one forward pass, padding included (16384 on a GPU, 2048 on a CPU)."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the reward model."})
    pair_selection: Literal["max_min", "wpo_v2", "random_rejected"] = field(
        default="max_min", metadata={"help": "Rule that picks chosen and rejected; see pair_selection.py."}
    )
    min_margin: float = field(default=0.0, metadata={"help": "Drop pairs whose scores differ by less."})
    seed: int = field(default=42, metadata={"help": "Of random_rejected."})
    extra_responses: str | None = field(
        default=None,
        metadata={
            "help": "Off-policy responses to score beside the model's own: a .json or .jsonl file with prompt and "
            "all_generated_responses, or with prompt, chosen and rejected."
        },
    )
    test_generation_file: str | None = field(
        default=None, metadata={"help": "post_process.py's output for the test prompts: the test split."}
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Without test_generation_file: part of the pairs that is the test split (0.02)."},
    )

    def __post_init__(self):
        if self.test_fraction is not None and self.test_generation_file is not None:
            raise UserError("test_fraction and test_generation_file are both given: choose one")
        self.test_fraction = 0.02 if self.test_fraction is None else self.test_fraction
        if not 0 < self.test_fraction < 1:
            raise UserError(f"test_fraction: must be between 0 and 1, got {self.test_fraction}")
        if (self.batch_tokens is not None and self.batch_tokens < 1) or self.min_margin < 0:
            raise UserError("batch_tokens must be at least 1 and min_margin not negative")


@command
def main() -> None:
    args = H4ArgumentParser(AnnotateArguments).parse()
    rows, counts = load_rows(args)
    from reward_models import load_reward_model

    model = load_reward_model(args.reward_model, args.trust_remote_code)
    lock = lock_folder(Path(args.output_dir)) if is_main_process() else nullcontext()
    with lock, joined_processes() as processes:
        annotate(model, rows, counts, args, processes)


def annotate(
    model: Any,
    rows: dict[str, list[dict[str, Any]]],
    counts: Counter[str],
    args: AnnotateArguments,
    processes: Processes,
) -> None:
    """Score this process's share; the main process then puts the scores together and writes the results."""
    folder = Path(args.output_dir)
    if processes.rank == 0:
        earlier = any(Journal.read(folder, "scores.*.jsonl"))
        check_settings(folder / SETTINGS, settings_of(args), earlier)
    processes.wait()
    everything = [row for split in rows.values() for row in split]
    score_share(model, everything, args, processes)
    processes.wait()
    if processes.rank == 0:
        scores = known_scores(folder)
        for row in everything:
            row["all_rm_scores"] = assemble(model, row, scores)
        pairs = {split: make_pairs(rows[split], args, counts) for split in rows}
        write_results(folder, rows, pairs, args)
        from summary import write_summary

        say(write_summary(folder, everything, [row for split in pairs.values() for row in split], counts))


def load_rows(args: AnnotateArguments) -> tuple[dict[str, list[dict[str, Any]]], Counter[str]]:
    """The prompts with their candidates: "train", and "test" when the test prompts come in a file of their own."""
    counts: Counter[str] = Counter()
    rows = {"train": read_candidates(Path(args.generation_file), "generation_file")}
    if args.test_generation_file is not None:
        rows["test"] = read_candidates(Path(args.test_generation_file), "test_generation_file")
        held_out = {row["prompt"] for row in rows["test"]}
        kept = [row for row in rows["train"] if row["prompt"] not in held_out]
        counts["train prompts dropped: also in the test file"] = len(rows["train"]) - len(kept)
        rows["train"] = kept
    if args.extra_responses is not None:
        counts["extra responses added"] = add_responses(
            [row for split in rows.values() for row in split], Path(args.extra_responses)
        )
    return rows, counts


def settings_of(args: AnnotateArguments) -> dict[str, Any]:
    """What all scores of a folder must have in common."""
    name = args.reward_model
    return {
        "reward_model": str(Path(name).resolve()) if Path(name).exists() else name,
        "weights": weights_digest(name),
        "torch_dtype": args.torch_dtype,
    }


def unit_key(unit: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(unit).encode()).hexdigest()[:32]


def known_scores(folder: Path) -> dict[str, float]:
    """The values that the journals hold, by `unit_key`."""
    return {key: value for line in Journal.read(folder, "scores.*.jsonl") for key, value in line.items()}


def score_share(model: Any, rows: list[dict[str, Any]], args: AnnotateArguments, processes: Processes) -> None:
    """Score this process's share of the prompts; append every batch's values to its journal as one line."""
    import torch
    from tqdm import tqdm

    from reward_models import score_batches

    done = known_scores(Path(args.output_dir))
    share = rows[processes.rank :: processes.count]
    units = [[u for row in share[i : i + CHUNK] for u in units_of(model, row)] for i in range(0, len(share), CHUNK)]
    if all(unit_key(unit) in done for chunk in units for unit in chunk):
        return
    journal = Journal(Path(args.output_dir), f"scores.{processes.rank}.jsonl")
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    model.load(torch.device(gpu if torch.cuda.is_available() else "cpu"), getattr(torch, args.torch_dtype))

    def is_done(unit: tuple[str, ...]) -> bool:
        return unit_key(unit) in done

    with tqdm(
        total=sum(len(set(chunk)) for chunk in units),
        desc="scoring",
        unit="response",
        disable=processes.rank > 0,
    ) as bar:
        for chunk in units:
            for batch in score_batches(model, chunk, args.batch_tokens, is_done):
                values = {unit_key(unit): value for unit, value in batch if math.isfinite(value)}
                journal.append(values)
                done.update(values)
                bar.update(len(batch))
                if len(values) < len(batch):
                    return  # not a number: the main process names it


def units_of(model: Any, row: dict[str, Any]) -> list[tuple[str, ...]]:
    return model.units(row["prompt"], row["all_generated_responses"])


def assemble(model: Any, row: dict[str, Any], scores: dict[str, float]) -> list[float]:
    """The scores of a row's responses from the journals' values.

    Raises:
        UserError: a value is missing because it was no finite number.
    """
    units = units_of(model, row)
    for unit in units:
        if unit_key(unit) not in scores:
            raise UserError(
                f"reward_model: the score of a response to {row['prompt'][:60]!r} is not a finite number "
                f"(the response: {unit[1][:60]!r}); try --torch_dtype float32"
            )
    return model.combine([scores[unit_key(unit)] for unit in units])


def make_pairs(rows: list[dict[str, Any]], args: AnnotateArguments, counts: Counter[str]) -> list[dict[str, Any]]:
    """Choose a pair per prompt; count what is dropped and why."""
    pairs = []
    for what in ("kept", "dropped: all scores identical", "dropped: margin below min_margin"):
        counts[f"pairs {what}"] += 0  # shown even when there are none
    for row in rows:
        pair = select(row, args)
        if pair is None:
            counts["pairs dropped: all scores identical"] += 1
        elif pair.margin < args.min_margin:
            counts["pairs dropped: margin below min_margin"] += 1
        else:
            counts["pairs kept"] += 1
            user = {"role": "user", "content": row["prompt"]}
            sides = {"chosen": pair.chosen, "rejected": pair.rejected}
            answers = {k: row["all_generated_responses"][i] for k, i in sides.items()}
            messages = {k: [user, {"role": "assistant", "content": answer}] for k, answer in answers.items()}
            pairs.append(row | messages)
    return pairs


def select(row: dict[str, Any], args: AnnotateArguments) -> Pair | None:
    scores = row["all_rm_scores"]
    if args.pair_selection == "wpo_v2":
        return wpo_v2(scores, [len(response) for response in row["all_generated_responses"]])
    if args.pair_selection == "random_rejected":  # seeded by the prompt, so that other prompts do not matter
        return random_rejected(scores, random.Random(f"{args.seed} {row['prompt']}"))
    return max_min(scores)


def write_results(
    folder: Path, rows: dict[str, list[dict]], pairs: dict[str, list[dict]], args: AnnotateArguments
) -> None:
    """Write the JSON files and the datasets folder.

    Raises:
        UserError: too few pairs are left for two splits.
    """
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    splits = pairs if "test" in pairs else split_pairs(pairs["train"], args.test_fraction)
    if empty := [split for split in ("train", "test") if not splits[split]]:
        raise UserError(f"no pairs are left for the {empty[0]} split: give more prompts, or lower min_margin")
    for split in rows:
        suffix = "" if split == "train" else "_test"
        write_json(folder / f"all_outputs_rm{suffix}.json", rows[split])
        write_json(folder / f"all_outputs_bin{suffix}.json", pairs[split])
    beside, place = folder / "datasets.tmp", folder / "datasets"
    shutil.rmtree(beside, ignore_errors=True)
    DatasetDict({split: Dataset.from_list(splits[split]) for split in ("train", "test")}).save_to_disk(beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)


def split_pairs(pairs: list[dict[str, Any]], fraction: float) -> dict[str, list[dict[str, Any]]]:
    """Hold out a part of the pairs (at least one), picked by a hash of the prompt: the same ones whatever the order."""
    order = sorted(pairs, key=lambda row: hashlib.sha256(row["prompt"].encode()).digest())
    held_out = {row["prompt"] for row in order[: max(1, round(fraction * len(pairs)))]}
    return {
        "train": [row for row in pairs if row["prompt"] not in held_out],
        "test": [row for row in pairs if row["prompt"] in held_out],
    }


if __name__ == "__main__":
    main()
