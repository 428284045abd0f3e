"""Answer prompts with the model that is to be trained: the first step of on-policy preference data.

    python decode.py --model google/gemma-2-9b-it --data_dir HuggingFaceH4/ultrafeedback_binarized \
        --seed 13 21 42 79 100 --output_dir datasets/gemma2_ultrafeedback
    python decode.py config.yaml --temperature 0.7

Writes to output_dir:
    output_{seed}.json    one row per prompt, sorted by prompt: {prompt, format_prompt (the prompt as the model saw it),
                          generated_text, finish_reason ("stop", or "length" when cut), num_tokens (of the response)}
    skipped_prompts.json  prompts that leave no room in max_model_len: {prompt, num_tokens}
    decode_settings.json  what the folder's responses are made with; another model, template or sampling is refused
    journal/              responses of a run that has not ended; the same command continues from them

All seeds run in one engine. Each request samples with its own noise, derived from (seed, prompt); the original gave
every prompt of a seed the same noise (`--shared_seed`).
"""

import multiprocessing
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prompts import load_prompts
from simpo.chat.variables import keep_date
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, say, warn
from simpo.engine.vllm import Request, context_length, engine_settings, generate, noise_seed, start_engine
from simpo.files import read_rows, weights_digest, write_json
from simpo.folder import Journal, check_settings, lock_folder, recorded_settings

SETTINGS = "decode_settings.json"
SKIPPED = "skipped_prompts.json"
OUTPUT_FIELDS = {"prompt": str, "format_prompt": str, "generated_text": str, "finish_reason": str, "num_tokens": int}


@dataclass
class DecodeArguments:
    """What to answer, with which model, and how to sample."""

    data_dir: str = field(
        default="HuggingFaceH4/ultrafeedback_binarized",
        metadata={"help": "Prompts: hub name, local folder, or a .jsonl, .json, .parquet or .csv file."},
    )
    model: str = field(default="google/gemma-2-9b-it", metadata={"help": "Hub name or folder."})
    temperature: float = field(default=0.8, metadata={"help": "0: always the likeliest token."})
    top_p: float = field(default=0.95, metadata={"help": "Total probability of the tokens sampled from."})
    max_tokens: int = field(default=4096, metadata={"help": "Longest response, in tokens."})
    seed: list[int] = field(default_factory=lambda: [42], metadata={"help": "One or more seeds: one output file each."})
    output_dir: str = field(default="datasets/gemma2_ultrafeedback", metadata={"help": "Folder of the output files."})
    split: str = field(default="train_prefs", metadata={"help": "Split to read, when data_dir is not a file."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column that holds the prompts."})
    limit: int | None = field(default=None, metadata={"help": "Answer the first so many prompts only."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share one engine."})
    data_parallel_size: int = field(default=1, metadata={"help": "Engines, each with its share of the prompts."})
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

    def __post_init__(self):
        if len(set(self.seed)) < len(self.seed) or not self.seed:
            raise UserError(f"seed: {self.seed}: give each seed once")
        if any(seed < 0 for seed in self.seed):
            raise UserError(f"seed: {self.seed}: seeds must not be negative")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"temperature must be at least 0 and top_p in (0, 1], got {self.temperature}, {self.top_p}")
        for name in ("max_tokens", "limit", "tensor_parallel_size", "data_parallel_size", "max_model_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: must be at least 1, got {value}")


@command
def main() -> None:
    args = H4ArgumentParser(DecodeArguments).parse()
    prompts = load_prompts(args.data_dir, args.split, args.prompt_column, args.limit)
    tokenizer = load_tokenizer(args)
    with lock_folder(Path(args.output_dir)):
        decode(args, prompts, tokenizer)


def decode(args: DecodeArguments, prompts: list[str], tokenizer: Any) -> None:
    """Answer what earlier runs left, then write each seed's file."""
    folder = Path(args.output_dir)
    started = has_output(folder)
    check_settings(folder / SETTINGS, settings_of(args, tokenizer.chat_template), started)
    if not started:
        (folder / SKIPPED).unlink(missing_ok=True)  # of other settings, perhaps
    done = finished_responses(folder, args.seed)
    skipped = {row["prompt"] for row in read_skipped(folder)}
    pending = [prompt for prompt in prompts if prompt not in skipped and any(prompt not in done[s] for s in args.seed)]
    finished = sum(prompt in done[seed] for prompt in prompts for seed in args.seed)
    say(f"{len(prompts)} prompts x {len(args.seed)} seeds: {finished} responses done before")
    if pending:
        formatted = format_prompts(tokenizer, pending)
        engine = engine_settings(
            args.model,
            args.dtype,
            args.max_model_len,
            args.tensor_parallel_size,
            args.attention_backend or os.environ.get("VLLM_ATTENTION_BACKEND"),
            args.trust_remote_code,
        )
        formatted = skip_long_prompts(folder, formatted, context_length(engine))
        if requests := make_requests(args, formatted, done):
            run_engines(args, engine, requests, formatted)
        done = finished_responses(folder, args.seed)
    for seed in args.seed:
        write_json(folder / f"output_{seed}.json", [done[seed][prompt] for prompt in sorted(done[seed])])
        Journal.remove(folder, f"output_{seed}.*.jsonl")
        say(f"{folder / f'output_{seed}.json'}: {len(done[seed])} responses")


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
    names += ("dtype", "shared_seed")
    paths = {"model": args.model, "data_dir": args.data_dir}
    return {
        **{key: str(Path(value).resolve()) if Path(value).exists() else value for key, value in paths.items()},
        "weights": weights_digest(args.model),
        "chat_template": chat_template,
        **{name: getattr(args, name) for name in names},
    }


def has_output(folder: Path) -> bool:
    return any(folder.glob("output_*.json")) or any(Journal.read(folder, "output_*.jsonl"))


def finished_responses(folder: Path, seeds: list[int]) -> dict[int, dict[str, dict[str, Any]]]:
    """Rows that earlier runs finished, by seed and prompt: of the final files and of the journals."""
    done: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in seeds:
        path = folder / f"output_{seed}.json"
        rows = read_rows(path, "output_dir", OUTPUT_FIELDS) if path.is_file() else []
        done[seed] = {row["prompt"]: row for row in [*rows, *Journal.read(folder, f"output_{seed}.*.jsonl")]}
    return done


def read_skipped(folder: Path) -> list[dict[str, Any]]:
    path = folder / SKIPPED
    return read_rows(path, "output_dir", {"prompt": str, "num_tokens": int}) if path.is_file() else []


def format_prompts(tokenizer: Any, prompts: list[str]) -> dict[str, tuple[str, list[int]]]:
    """Each prompt as one user message: its text with the template, and its token ids with exactly one BOS."""
    from simpo.chat.ids import ContentGuard, chat_ids, with_one_bos

    guard, formatted = ContentGuard(tokenizer), {}
    for prompt in prompts:
        text, ids = chat_ids(guard, [{"role": "user", "content": prompt}], add_generation_prompt=True)
        formatted[prompt] = text, with_one_bos(ids, tokenizer.bos_token_id)
    return formatted


def skip_long_prompts(
    folder: Path, formatted: dict[str, tuple[str, list[int]]], max_model_len: int
) -> dict[str, tuple[str, list[int]]]:
    """Leave out prompts without room for a response of one token; say how many, and list them in a file."""
    too_long = {prompt: len(ids) for prompt, (_, ids) in formatted.items() if len(ids) >= max_model_len}
    if too_long:
        rows = read_skipped(folder) + [{"prompt": p, "num_tokens": n} for p, n in too_long.items()]
        write_json(folder / SKIPPED, rows)
        warn(
            f"{len(too_long)} prompts skipped: too long for max_model_len {max_model_len} "
            f"(the longest has {max(too_long.values())} tokens); listed in {folder / SKIPPED}"
        )
    return {prompt: value for prompt, value in formatted.items() if prompt not in too_long}


def make_requests(
    args: DecodeArguments,
    formatted: dict[str, tuple[str, list[int]]],
    done: dict[int, dict[str, dict[str, Any]]],
) -> list[Request]:
    """What is missing, all seeds of a prompt together, so that the engine computes their prompt once."""
    sampling = {name: getattr(args, name) for name in ("temperature", "top_p", "max_tokens")}
    return [
        Request((seed, prompt), ids, sampling | {"seed": seed if args.shared_seed else noise_seed(seed, prompt)})
        for prompt, (_, ids) in formatted.items()
        for seed in args.seed
        if prompt not in done[seed]
    ]


def run_engines(
    args: DecodeArguments,
    engine: dict[str, Any],
    requests: list[Request],
    formatted: dict[str, tuple[str, list[int]]],
) -> None:
    """Run one engine here, or data_parallel_size engines in processes of their own.

    Raises:
        UserError: too few GPUs, or an engine's process stopped.
    """
    texts = {prompt: text for prompt, (text, _) in formatted.items()}
    count = args.data_parallel_size
    if count == 1:
        return run_engine(0, args, engine, requests, texts)
    environments = engine_environments(count, args.tensor_parallel_size)
    spawn, processes = multiprocessing.get_context("spawn"), []
    for rank in range(count):
        os.environ.update(environments[rank])  # inherited, because it must be there before torch is imported
        processes.append(spawn.Process(target=run_child, args=(rank, args, engine, requests[rank::count], texts)))
        processes[-1].start()
    for process in processes:
        process.join()
    if failed := [str(rank) for rank, process in enumerate(processes) if process.exitcode != 0]:
        raise UserError(f"engine {', '.join(failed)} of {count} stopped (see above); the same command continues")


def engine_environments(count: int, gpus_each: int) -> list[dict[str, str]]:
    """Environment variables that give each of `count` engines its own GPUs, or its share of the CPU's threads.

    Raises:
        UserError: there are fewer GPUs than the engines need.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0:
        return [{"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}] * count
    if gpus < count * gpus_each:
        raise UserError(f"data_parallel_size {count} x tensor_parallel_size {gpus_each} needs more than {gpus} GPUs")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[r * gpus_each : (r + 1) * gpus_each])} for r in range(count)]


def run_child(*job: Any) -> None:
    """An engine's own process: ends with its parent, so that no orphan writes beside the next run."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    command(lambda: run_engine(*job))()


def run_engine(
    rank: int, args: DecodeArguments, engine: dict[str, Any], requests: list[Request], texts: dict[str, str]
) -> None:
    """Answer the requests; append each response to its seed's journal as it finishes."""
    from tqdm import tqdm

    journals = {seed: Journal(Path(args.output_dir), f"output_{seed}.{rank}.jsonl") for seed in args.seed}
    llm, tokens = start_engine(engine), 0
    with tqdm(total=len(requests), desc=f"engine {rank}", unit="response", position=rank, smoothing=0) as bar:
        for response in generate(llm, requests):
            seed, prompt = response.key
            values = (prompt, texts[prompt], response.text, response.finish_reason, response.num_tokens)
            journals[seed].append(dict(zip(OUTPUT_FIELDS, values, strict=True)))
            tokens += response.num_tokens
            bar.update()
            bar.set_postfix_str(f"{tokens / bar.format_dict['elapsed']:.0f} tokens/s", refresh=False)


if __name__ == "__main__":
    main()
