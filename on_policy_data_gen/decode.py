"""Answer prompts with the model that is to be trained: the first step of on-policy preference data.

    python decode.py --model google/gemma-2-9b-it --data_dir HuggingFaceH4/ultrafeedback_binarized \
        --seed 13 21 42 79 100 --output_dir datasets/gemma2_ultrafeedback
    python decode.py config.yaml --temperature 0.7

Writes to output_dir:
    output_{seed}.json    one row per prompt, sorted by prompt: {prompt, format_prompt (the prompt as the model saw it),
                          generated_text, finish_reason ("stop", or "length" when cut), num_tokens (of the response)};
                          the prompt is a text, or a list of messages where there are several; --keep_columns follow
    skipped_prompts.json  prompts that leave no room in max_model_len, or that the template refuses: {prompt, reason,
                          num_tokens}
    decode_settings.json  what the folder's responses are made with; another model, template or sampling is refused
    journal/              responses of a run that has not ended; the same command continues from them. Responses to
                          prompts that have left the data, too

All seeds run in one engine. Each request samples with its own noise, derived from (seed, prompt); the original gave
every prompt of a seed the same noise (`--shared_seed`).
"""

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from candidates import MADE
from conversations import Prompt, prompt_text, to_messages
from decoded import (
    SKIPPED,
    Done,
    finished_responses,
    has_output,
    read_skipped,
    skipped_row,
    write_outputs,
    write_skipped,
)
from engines import run_engines
from prompts import load_prompts, part_of, read_part
from simpo.chat.variables import keep_date
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, say, warn
from simpo.engine.vllm import Request, context_length, engine_settings, noise_seed
from simpo.files import weights_digest
from simpo.folder import check_settings, lock_folder, recorded_settings

SETTINGS = "decode_settings.json"
LOST = "three engines ended while they answered it"


@dataclass
class DecodeArguments:
    """What to answer, with which model, and how to sample."""

    data_dir: str = field(
        default="HuggingFaceH4/ultrafeedback_binarized",
        metadata={"help": "Prompts: hub name, local folder, or a .jsonl, .json, .csv or .parquet file (.gz too)."},
    )
    model: str = field(default="google/gemma-2-9b-it", metadata={"help": "Hub name or folder."})
    temperature: float = field(default=0.8, metadata={"help": "0: always the likeliest token."})
    top_p: float = field(default=0.95, metadata={"help": "Total probability of the tokens sampled from."})
    max_tokens: int = field(default=4096, metadata={"help": "Longest response, in tokens."})
    seed: list[int] = field(default_factory=lambda: [42], metadata={"help": "One or more seeds: one output file each."})
    output_dir: str = field(default="datasets/gemma2_ultrafeedback", metadata={"help": "Folder of the output files."})
    split: str = field(default="train_prefs", metadata={"help": "Split to read, when data_dir is not a file."})
    prompt_column: str = field(
        default="prompt", metadata={"help": "Column that holds the prompts: texts, or conversations."}
    )
    keep_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other columns of the prompts' rows: travel with them to a reward program and into the pairs."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Answer the first so many prompts only."})
    exclude: str | None = field(default=None, metadata={"help": "File of prompts to leave out, such as held-out ones."})
    part: str | None = field(
        default=None,
        metadata={"help": "Answer a part of the prompts: 2/8 is the second of eight, by a hash of each prompt."},
    )
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share one engine."})
    data_parallel_size: int = field(
        default=1, metadata={"help": "Engines, here or over the cluster, which share the prompts."}
    )
    ray_address: str | None = field(
        default=None, metadata={"help": "HOST:PORT of a Ray cluster, whose machines run the engines."}
    )
    max_num_seqs: int | None = field(
        default=None, metadata={"help": "Responses that an engine makes at a time; vLLM's default for the device."}
    )
    gpu_memory_utilization: float | None = field(
        default=None, metadata={"help": "Part of each GPU's memory that an engine fills; vLLM's default."}
    )
    max_model_len: int | None = field(
        default=None, metadata={"help": "Longest prompt and response together, in tokens; the model's own by default."}
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "Precision; auto: the checkpoint's (16 bits for a float32 one)."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja text, a file, or a built-in name; the tokenizer's own by default."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Variables of the chat template, such as '{enable_thinking: false}'."},
    )
    attention_backend: str | None = field(
        default=None,
        metadata={"help": "vLLM's attention backend, such as FLASHINFER; or set VLLM_ATTENTION_BACKEND."},
    )
    shared_seed: bool = field(default=False, metadata={"help": "The original's seeding: one noise for all prompts."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    retry_failed: bool = field(default=False, metadata={"help": "Try the prompts in skipped_prompts.json again."})
    dry_run: bool = field(default=False, metadata={"help": "Read the prompts and the tokenizer, and stop there."})

    def __post_init__(self):
        if self.part is not None:
            read_part(self.part)
        if len(set(self.seed)) < len(self.seed) or not self.seed:
            raise UserError(f"seed: {self.seed}: give each seed once")
        if not all(0 <= seed < 2**63 for seed in self.seed):
            raise UserError(f"seed: {self.seed}: seeds must be at least 0 and below 2^63")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise UserError(f"temperature must be at least 0 and top_p in (0, 1], got {self.temperature}, {self.top_p}")
        if taken := MADE & set(self.keep_columns or ()):
            raise UserError(f"keep_columns: {min(taken)} is a field that the scripts make: rename the column")
        if self.temperature == 0 and len(self.seed) > 1:
            raise UserError("temperature 0 gives the same answers under every seed: give one seed, or a temperature")
        if not 0 < (1 if self.gpu_memory_utilization is None else self.gpu_memory_utilization) <= 1:
            raise UserError(f"gpu_memory_utilization: must be in (0, 1], got {self.gpu_memory_utilization}")
        sizes = ("tensor_parallel_size", "data_parallel_size", "max_model_len", "max_num_seqs")
        for name in ("max_tokens", "limit", *sizes):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise UserError(f"{name}: must be at least 1 and below 2^31, got {value}")


@command
def main() -> None:
    args = H4ArgumentParser(DecodeArguments).parse()
    prompts = choose_prompts(args)
    tokenizer = load_tokenizer(args)
    if args.dry_run:
        say(f"{args.data_dir}: {len(prompts)} prompts (dry_run: nothing is answered)")
        return
    with lock_folder(Path(args.output_dir)):
        decode(args, prompts, tokenizer)


def choose_prompts(args: DecodeArguments) -> dict[Prompt, dict[str, Any]]:
    """The prompts to answer, each with the columns to keep.

    Raises:
        UserError: see `load_prompts`; or none is left.
    """
    prompts = load_prompts(args.data_dir, args.split, args.prompt_column, args.limit, args.keep_columns or ())
    if args.exclude is not None:
        excluded = load_prompts(args.exclude, args.split, "prompt")
        prompts = {prompt: columns for prompt, columns in prompts.items() if prompt not in excluded}
        if not prompts:
            raise UserError(f"exclude: {args.exclude} holds all prompts of {args.data_dir}")
    return prompts if args.part is None else part_of(prompts, args.part)


def decode(args: DecodeArguments, prompts: dict[Prompt, dict[str, Any]], tokenizer: Any) -> None:
    """Answer what earlier runs left, then write each seed's file."""
    folder = Path(args.output_dir)
    started = has_output(folder)
    check_settings(folder / SETTINGS, settings_of(args, tokenizer.chat_template), started)
    if not started:
        (folder / SKIPPED).unlink(missing_ok=True)  # of other settings, perhaps
    done = finished_responses(folder, args.seed)
    skipped = {} if args.retry_failed else read_skipped(folder)
    pending = [prompt for prompt in prompts if prompt not in skipped and any(prompt not in done[s] for s in args.seed)]
    finished = sum(prompt in done[seed] for prompt in prompts for seed in args.seed)
    say(f"{len(prompts)} prompts x {len(args.seed)} seeds: {finished} responses done before")
    if pending:
        formatted, refused = format_prompts(tokenizer, pending)
        if refused and not formatted and not finished:
            raise UserError(f"chat_template: every prompt is refused: {next(iter(refused.values()))['reason']}")
        engine = engine_settings(
            args.model,
            args.dtype,
            args.max_model_len,
            args.tensor_parallel_size,
            args.attention_backend or os.environ.get("VLLM_ATTENTION_BACKEND"),
            args.trust_remote_code,
            args.max_num_seqs,
            args.gpu_memory_utilization,
        )
        refused |= too_long(formatted, context_length(engine))
        report_refused(refused, folder)
        skipped |= refused
        write_skipped(folder, prompts, skipped)
        formatted = {prompt: value for prompt, value in formatted.items() if prompt not in refused}
        if requests := make_requests(args, formatted, done):
            texts = {prompt: text for prompt, (text, _) in formatted.items()}
            lost = run_engines(folder, engine, args.data_parallel_size, requests, texts, args.ray_address)
            refused = {prompt: skipped_row(prompt, LOST) for prompt in lost}
            report_refused(refused, folder)
            skipped |= refused
    write_skipped(folder, prompts, skipped)
    write_outputs(folder, {p: columns for p, columns in prompts.items() if p not in skipped}, args.seed)


def load_tokenizer(args: DecodeArguments) -> Any:
    """The model's tokenizer with the chat template to use; a folder's prompts all have the date of its first ones."""
    from simpo.config import DataArguments, ModelArguments
    from simpo.train.model import get_tokenizer

    recorded = recorded_settings(Path(args.output_dir) / SETTINGS).get("chat_template_kwargs")
    data_args = DataArguments(
        chat_template=args.chat_template, chat_template_kwargs=keep_date(args.chat_template_kwargs, recorded)
    )
    tokenizer = get_tokenizer(
        ModelArguments(model_name_or_path=args.model, trust_remote_code=args.trust_remote_code), data_args
    )
    args.chat_template_kwargs = data_args.chat_template_kwargs
    tokenizer.model_max_length = 10**9  # the engine's own limit counts
    return tokenizer


def settings_of(args: DecodeArguments, chat_template: str) -> dict[str, Any]:
    """What every response of a folder must have in common."""
    names = ("split", "prompt_column", "chat_template_kwargs", "temperature", "top_p", "max_tokens", "max_model_len")
    names += ("dtype", "shared_seed", "part")
    paths = {"model": args.model, "data_dir": args.data_dir}
    return {
        **{key: str(Path(value).resolve()) if Path(value).exists() else value for key, value in paths.items()},
        "weights": weights_digest(args.model),
        "chat_template": chat_template,
        **{name: getattr(args, name) for name in names},
    }


def format_prompts(
    tokenizer: Any, prompts: list[Prompt]
) -> tuple[dict[Prompt, tuple[str, list[int]]], dict[Prompt, dict[str, Any]]]:
    """Each prompt with the template: its text, and its token ids with exactly one BOS. And the refused ones' rows."""
    from simpo.chat.answers import holds
    from simpo.chat.ids import ContentGuard, chat_ids, with_one_bos

    guard, formatted, refused = ContentGuard(tokenizer), {}, {}
    for prompt in prompts:
        try:
            messages = to_messages(prompt)
            text, ids = chat_ids(guard, messages, add_generation_prompt=True)
            if lost := [message["role"] for message in messages if not holds(text, message)]:
                raise UserError(f"the chat template leaves out a message of role {lost[0]!r}")
            formatted[prompt] = text, with_one_bos(ids, tokenizer.bos_token_id)
        except UserError as error:
            refused[prompt] = skipped_row(prompt, str(error))
    return formatted, refused


def too_long(formatted: dict[Prompt, tuple[str, list[int]]], max_model_len: int) -> dict[Prompt, dict[str, Any]]:
    """Rows of the prompts without room for a response of one token."""
    reason = f"too long for max_model_len {max_model_len}"
    return {p: skipped_row(p, reason, len(ids)) for p, (_, ids) in formatted.items() if len(ids) >= max_model_len}


def report_refused(refused: dict[Prompt, dict[str, Any]], folder: Path) -> None:
    for reason, count in Counter(row["reason"] for row in refused.values()).items():
        longest = max((row["num_tokens"] or 0 for row in refused.values() if row["reason"] == reason), default=0)
        tokens = f" (the longest has {longest} tokens)" if longest else ""
        warn(f"{count} prompts skipped: {reason}{tokens}; listed in {folder / SKIPPED}")


def make_requests(
    args: DecodeArguments,
    formatted: dict[Prompt, tuple[str, list[int]]],
    done: Done,
) -> list[Request]:
    """What is missing, all seeds of a prompt together, so that the engine computes their prompt once."""
    sampling = {name: getattr(args, name) for name in ("temperature", "top_p", "max_tokens")}

    def request(seed: int, prompt: Prompt, ids: list[int]) -> Request:
        noise = seed if args.shared_seed else noise_seed(seed, prompt_text(prompt))
        return Request((seed, prompt), ids, sampling | {"seed": noise})

    return [
        request(seed, prompt, ids)
        for prompt, (_, ids) in formatted.items()
        for seed in args.seed
        if prompt not in done[seed]
    ]


if __name__ == "__main__":
    main()
