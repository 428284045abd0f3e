"""Score the responses with a reward model and make pairs: the last step of on-policy preference data.

    python reward_model_annotate.py --generation_file datasets/gemma2_ultrafeedback/all_outputs.json \
        --reward_model RLHFlow/ArmoRM-Llama3-8B-v0.1 --output_dir datasets/gemma2_ultrafeedback
    accelerate launch --num_processes 8 reward_model_annotate.py ...      (one process per GPU)

Writes to output_dir:
    all_outputs_rm.json     {prompt, all_generated_responses, all_rm_scores (same order; null: no score)} per prompt
    all_outputs_bin.json    the same with chosen and rejected, as [user message, assistant message], without the dropped
                            prompts; a conversation's pair repeats its messages
    all_outputs_rm_test.json, all_outputs_bin_test.json    the same for the prompts of --test_generation_file
    datasets/               the rows of all_outputs_bin as train and test splits: dataset_mixer: {this folder: 1.0}
    annotate_summary.txt, annotate_summary.png    what came out
    annotate_settings.json, journal/              which model made the scores, and the scores: a stopped run continues
"""

import difflib
import math
import random
import statistics
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from candidates import add_responses, check_scores, read_candidates
from conversations import prompt_text
from engines import open_team
from pair_selection import PAIR_RULES, choose_pairs
from processes import Processes, joined_processes
from results import scored_row, write_results, write_split_files
from scorer import Scorer, check_spread
from scoring import apply_scores, known_scores, score_share, split_thoughts
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, is_main_process, say, warn
from simpo.engine.team import Team
from simpo.files import weights_digest, write_json
from simpo.folder import check_settings, check_shared, lock_folder, recorded_settings
from simpo.judge.endpoint import EndpointArguments

SETTINGS = "annotate_settings.json"
MUCH = 1.5  # times longer


@dataclass
class AnnotateArguments(EndpointArguments):
    """What to score, with which reward model, and how to choose pairs."""

    generation_file: str = field(
        default="datasets/gemma2_ultrafeedback/all_outputs.json",
        metadata={"help": "post_process.py's output, or other responses (with scores): a file, or DATA:SPLIT."},
    )
    reward_model: str = field(
        default="RLHFlow/ArmoRM-Llama3-8B-v0.1",
        metadata={
            "help": "ArmoRM, PairRM or a sequence classifier with one label: hub name or folder. Or a program: "
            "path/to/file.py:function. Or judge:NAME, a chat model at --base_url. Or given: the scores in the rows."
        },
    )
    output_dir: str = field(default="datasets/gemma2_ultrafeedback/", metadata={"help": "Folder of the results."})
    torch_dtype: Literal["bfloat16", "float16", "float32"] = field(
        default="bfloat16", metadata={"help": "Precision of the reward model (ArmoRM's heads: always float32)."}
    )
    data_parallel_size: int = field(
        default=1, metadata={"help": "Copies of the reward model, here or over the cluster, which share the batches."}
    )
    ray_address: str | None = field(
        default=None, metadata={"help": "HOST:PORT of a Ray cluster, whose machines run the copies."}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of one forward pass, padding included (16384 on a GPU, 2048 on a CPU)."},
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Cut prompt and response together to so many tokens; without it, what is too long has no score."
        },
    )
    shared_prompt: bool | None = field(
        default=None,
        metadata={"help": "Run a prompt once for all its responses (where the model allows; false: never)."},
    )
    thinking: Literal["strip", "keep", "fail"] = field(
        default="strip",
        metadata={
            "help": "Responses that begin with a block of thoughts: score what follows it, score the whole, or stop. "
            "The pairs always hold whole responses."
        },
    )
    retry_failed: bool = field(default=False, metadata={"help": "Try again what an earlier run could not score."})
    time_limit: float = field(
        default=60.0, metadata={"help": "Seconds that a program has for the responses to one prompt."}
    )
    rubric: str | None = field(
        default=None,
        metadata={"help": "By what a judge rates: a text with {prompt} and {response} (default: rewards/rubric.txt)."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the reward model."})
    scores_only: bool = field(default=False, metadata={"help": "Write all_outputs_rm.json, and make no pairs."})
    pair_selection: str = field(
        default="max_min",
        metadata={"help": f"Rule that picks chosen and rejected: {', '.join(PAIR_RULES)} (pair_selection.py)."},
    )
    pairs_per_prompt: int = field(
        default=1, metadata={"help": "Pairs of each prompt that share no response: best with worst, second with ..."}
    )
    min_margin: float = field(default=0.0, metadata={"help": "Drop pairs whose scores differ by less."})
    seed: int = field(default=42, metadata={"help": "Of random_rejected."})
    extra_responses: str | None = field(
        default=None,
        metadata={
            "help": "Off-policy responses to score beside the model's own: a file, or DATA:SPLIT+SPLIT of a folder or "
            "the hub, with all_generated_responses, chosen and rejected, or completions."
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
        super().__post_init__()
        if not self.reward_model.startswith("judge:"):
            for name in ("rubric", "base_url", "judge_args"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name}: is of a judge only: --reward_model judge:NAME")
        elif unused := [n for n in ("batch_tokens", "max_length", "shared_prompt") if getattr(self, n) is not None]:
            raise UserError(f"{unused[0]}: has no effect on a judge: leave it out")
        if self.test_fraction is not None and self.test_generation_file is not None:
            raise UserError("test_fraction and test_generation_file are both given: choose one")
        self.test_fraction = 0.02 if self.test_fraction is None else self.test_fraction
        if not 0 < self.test_fraction < 1:
            raise UserError(f"test_fraction: must be between 0 and 1, got {self.test_fraction}")
        for name in ("batch_tokens", "max_length", "pairs_per_prompt", "data_parallel_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: must be at least 1, got {value}")
        if not 0 < self.time_limit < math.inf:
            raise UserError(f"time_limit: must be a number above 0, got {self.time_limit}")
        if not 0 <= self.min_margin < math.inf:
            raise UserError(f"min_margin: must be a number of at least 0, got {self.min_margin}")
        if self.pair_selection not in PAIR_RULES:
            near = difflib.get_close_matches(self.pair_selection, PAIR_RULES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"pair_selection: there is no {self.pair_selection!r}; {hint}({', '.join(PAIR_RULES)})")


@command
def main() -> None:
    args = H4ArgumentParser(AnnotateArguments).parse()
    rows, counts = load_rows(args)
    from rewards import Options, load_reward_model

    recorded = recorded_settings(Path(args.output_dir) / SETTINGS).get("chat_template_kwargs")
    options = Options(
        args.batch_tokens,
        args.max_length,
        args.shared_prompt,
        args.trust_remote_code,
        args.time_limit,
        endpoint=args,
        rubric=args.rubric,
        folder=Path(args.output_dir),
        template_variables=recorded,
    )
    source = load_reward_model(args.reward_model, options)
    if spread(args):
        check_spread(source)
    # The folder is held after joining: a process whose launcher was killed meanwhile waits for the others for ever.
    lock = lock_folder(Path(args.output_dir)) if is_main_process() else nullcontext()
    with joined_processes() as processes, lock:
        annotate(source, rows, counts, args, processes)


def annotate(
    source: Any,
    rows: dict[str, list[dict[str, Any]]],
    counts: Counter[str],
    args: AnnotateArguments,
    processes: Processes,
) -> None:
    """Score this process's share; the main process then puts the scores together and writes the results."""
    folder = Path(args.output_dir)
    check_shared(folder)
    if processes.rank == 0:
        accept_revision(folder / SETTINGS, source.revision())
        settings = settings_of(args) | source.settings() | {"revision": source.revision()}
        check_settings(folder / SETTINGS, settings, bool(known_scores(folder)))
    processes.wait()
    everything = [row for split in rows.values() for row in split]
    make_team = partial(team_of, args, source.options) if spread(args) else None
    score_share(source, everything, folder, args.torch_dtype, args.retry_failed, processes, make_team)
    processes.wait()
    if processes.rank == 0:
        apply_scores(source, everything, folder, counts)
        if args.scores_only:
            write_split_files(folder, "rm", rows, scored_row)
            return
        pairs = {split: make_pairs(rows[split], args, counts) for split in rows}
        write_results(folder, rows, pairs, args.test_fraction, counts)
        from summary import write_summary

        kept = [row for split in pairs.values() for row in split]
        say(write_summary(folder, everything, kept, counts))
        warn_of_lengths(kept)


def load_rows(args: AnnotateArguments) -> tuple[dict[str, list[dict[str, Any]]], Counter[str]]:
    """The prompts with their candidates: "train", and "test" when the test prompts come in a file of their own."""
    counts: Counter[str] = Counter()
    rows = {"train": read_candidates(args.generation_file, "generation_file")}
    if args.test_generation_file is not None:
        rows["test"] = read_candidates(args.test_generation_file, "test_generation_file")
        held_out = {row["prompt"] for row in rows["test"]}
        kept = [row for row in rows["train"] if row["prompt"] not in held_out]
        counts["train prompts dropped: also in the test file"] = len(rows["train"]) - len(kept)
        rows["train"] = kept
    everything = [row for split in rows.values() for row in split]
    if args.extra_responses is not None:
        counts.update(add_responses(everything, args.extra_responses))
    check_scores(everything, args.reward_model)
    split_thoughts(everything, args.thinking, counts)
    return rows, counts


def spread(args: AnnotateArguments) -> bool:
    return args.ray_address is not None or args.data_parallel_size > 1


def team_of(args: AnnotateArguments, options: Any) -> Team:
    """Copies of the reward model, wherever they are to run."""
    folder = Path(args.reward_model)
    model = str(folder.resolve()) if folder.is_dir() else args.reward_model  # other processes have their own folder
    make = partial(Scorer, model, options._replace(endpoint=None, folder=None), args.torch_dtype)
    return open_team(make, model, args.data_parallel_size, 1, args.ray_address)


def accept_revision(record: Path, revision: str | None) -> None:
    """Other scores by a program or a rubric that was edited are not refused: they are asked for, all of them."""
    known = recorded_settings(record)
    if known.get("revision") not in (None, revision) and revision is not None:
        say("the program or the rubric has changed since the last run: everything is scored again")
        write_json(record, known | {"revision": revision})


def settings_of(args: AnnotateArguments) -> dict[str, Any]:
    """What all scores of a folder must have in common."""
    name = args.reward_model
    return {
        "reward_model": str(Path(name).resolve()) if Path(name).exists() else name,
        "weights": weights_digest(name),
        "torch_dtype": args.torch_dtype,
    }


def make_pairs(rows: list[dict[str, Any]], args: AnnotateArguments, counts: Counter[str]) -> list[dict[str, Any]]:
    """Choose the pairs of each prompt, which share no response; count what is dropped and why."""
    pairs = []
    for what in ("kept", "dropped: all scores identical", "dropped: margin below min_margin"):
        counts[f"pairs {what}"] += 0  # shown even when there are none
    for row in rows:
        scores, responses = row["all_rm_scores"], row["all_generated_responses"]
        rng = random.Random(f"{args.seed} {prompt_text(row['prompt'])}")  # so that other prompts do not matter
        found = choose_pairs(PAIR_RULES[args.pair_selection], scores, responses, args.pairs_per_prompt, rng)
        if sum(score is not None for score in scores) < 2:
            counts["pairs dropped: fewer than two responses with a score"] += 1
        elif not found:
            counts["pairs dropped: all scores identical"] += 1
        for pair in found:
            if pair.margin < args.min_margin:
                counts["pairs dropped: margin below min_margin"] += 1
            else:
                counts["pairs kept"] += 1
                pairs.append(row | {"chosen_index": pair.chosen, "rejected_index": pair.rejected})
    return pairs


def warn_of_lengths(pairs: list[dict[str, Any]]) -> None:
    """Length is what a policy learns first, where chosen and rejected differ in it."""
    chosen, rejected = (
        max(1, statistics.median(len(pair["all_generated_responses"][pair[f"{side}_index"]]) for pair in pairs))
        for side in ("chosen", "rejected")
    )
    if not 1 / MUCH < chosen / rejected < MUCH:
        warn(
            f"the chosen responses are {'longer' if chosen > rejected else 'shorter'} than the rejected ones "
            f"({chosen:.0f} against {rejected:.0f} characters, medians); the policy will learn that, too"
        )


if __name__ == "__main__":
    main()
