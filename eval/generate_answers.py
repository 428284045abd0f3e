"""Answer a benchmark's questions with a model, in the official tools' file format.

    python eval/generate_answers.py --benchmark alpacaeval2 --model princeton-nlp/Llama-3-Instruct-8B-SimPO \
        --config eval/alpacaeval2/configs/Llama-3-Instruct-8B-SimPO.yaml --legacy_ae062

Reads the questions from the hub, or from --questions FILE:
    alpacaeval2  {instruction, dataset}       arenahard  {question_id, turns: [{content}]}
    mt-bench     {question_id, category, turns: [text, text]}
Writes below output_dir (default outputs/eval/BENCHMARK):
    alpacaeval2  NAME/model_outputs.json: list of {dataset, instruction, output, generator}
    arenahard    model_answer/NAME.jsonl: {question_id, answer_id, model_id, choices: [{index, turns: [{content,
                 token_len}]}], tstamp}; mt-bench the same with turns: [text, text]
and beside it settings: model, weights, decoding, templates, tokenizer revision, engine version. A journal keeps each
answer with its finish_reason and num_tokens; a run that was killed continues from it.

Prompts go to vLLM as token ids with exactly one BOS; stop tokens are not part of the answers.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from answer_files import AnswerFiles, answer_files, token_counter, write_answers
from answering import Request, answers, engine_version, noise_seed
from decoding import Decoding, Settings, choose_decoding, read_settings
from prompting import Prompter, check_stop_ids, load_tokenizer, tokenizer_revision
from questions import BENCHMARKS, TURNS, Question, check_benchmark, load_questions
from simpo.chat.variables import keep_date
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, say, warn
from simpo.engine.vllm import context_length, engine_settings, start_engine
from simpo.files import weights_digest
from simpo.folder import Journal, check_settings, lock_folder, recorded_settings


@dataclass
class GenerateArguments:
    """Which benchmark, which model, and how to sample. What is not given comes from the configuration."""

    benchmark: str = field(default="", metadata={"help": f"One of {', '.join(BENCHMARKS)}."})
    model: str = field(default="", metadata={"help": "Hub name or folder."})
    config: str | None = field(
        default=None,
        metadata={"help": "AlpacaEval's or MT-Bench's YAML, or the folder with Arena-Hard's (eval/*/configs)."},
    )
    questions: str | None = field(default=None, metadata={"help": "Local question file; the hub's by default."})
    output_dir: str | None = field(default=None, metadata={"help": "Default: outputs/eval/BENCHMARK."})
    name: str | None = field(default=None, metadata={"help": "The model's name in the files; the configuration's."})
    temperature: float | None = field(default=None, metadata={"help": "0: always the likeliest token."})
    top_p: float | None = field(default=None, metadata={"help": "Total probability of the tokens sampled from."})
    max_tokens: int | None = field(default=None, metadata={"help": "Longest answer of a turn, in tokens."})
    stop_token_ids: list[int] | None = field(default=None, metadata={"help": "Tokens that end an answer, beside EOS."})
    seed: int = field(default=42, metadata={"help": "Every answer samples with its own noise, derived from this."})
    legacy_ae062: bool = field(
        default=False, metadata={"help": "Decode do_sample: true as alpaca-eval 0.6.2 did: greedily."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja text, a file, or a built-in name, instead of the configuration's."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Variables of the chat template, such as '{enable_thinking: false}'."}
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = field(
        default=None, metadata={"help": "Precision of the weights."}
    )
    max_model_len: int | None = field(default=None, metadata={"help": "Longest conversation, in tokens."})
    tensor_parallel_size: int | None = field(default=None, metadata={"help": "GPUs that share the model."})
    attention_backend: str | None = field(default=None, metadata={"help": "vLLM's attention backend."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self):
        check_benchmark(self.benchmark)
        if not self.model:
            raise UserError("model: not given (--model NAME_OR_FOLDER)")


@command
def main() -> None:
    args = H4ArgumentParser(GenerateArguments).parse()
    settings = read_settings(args.benchmark, args.config)
    given = {key: getattr(args, key) for key in ("temperature", "top_p", "max_tokens", "stop_token_ids")}
    decoding = choose_decoding(args.benchmark, settings, given, args.legacy_ae062)
    questions = load_questions(args.benchmark, args.questions)
    name = args.name or settings.name or Path(args.model).name
    files = answer_files(args.benchmark, args.output_dir or f"outputs/eval/{args.benchmark}", name)
    template, recorded = args.chat_template or settings.chat_template, recorded_settings(files.settings)
    variables = keep_date(args.chat_template_kwargs, recorded.get("chat_template_kwargs"))
    tokenizer, args.chat_template_kwargs = load_tokenizer(args.model, template, args.trust_remote_code, variables)
    check_stop_ids(decoding, len(tokenizer))
    prompter = Prompter(tokenizer, None if args.chat_template else settings.prompt_template)

    with lock_folder(files.work):
        finished = read_journal(files, args.benchmark)
        files.settings.parent.mkdir(parents=True, exist_ok=True)
        counted_by, count = token_counter(tokenizer) if args.benchmark == "arenahard" else (None, None)
        record = record_of(args, settings, decoding, questions, tokenizer) | {"token_len": counted_by}
        check_settings(files.settings, record, has_output=any(finished))
        say(f"{len(questions)} questions of {args.benchmark}, {len(finished[-1])} answered; {describe(decoding)}")
        generate(args, settings, decoding, prompter, questions, finished, files)
        report(questions, finished)
        write_answers(args.benchmark, files, name, questions, finished, count)
    say(f"wrote {files.answers} and {files.settings}")


def read_journal(files: AnswerFiles, benchmark: str) -> list[dict[Any, dict[str, Any]]]:
    """What earlier runs answered: per turn {question key: record}."""
    finished: list[dict[Any, dict[str, Any]]] = [{} for _ in range(TURNS[benchmark])]
    for row in Journal.read(files.work, "answers.jsonl"):
        finished[row["turn"] - 1][row["key"]] = row
    return finished


def record_of(
    args: GenerateArguments, settings: Settings, decoding: Decoding, questions: list[Question], tokenizer: Any
) -> dict[str, Any]:
    """What all answers of a file must have in common."""
    asked = json.dumps([[question.key, *question.turns] for question in questions], ensure_ascii=False)
    return {
        "benchmark": args.benchmark,
        "model": str(Path(args.model).resolve()) if Path(args.model).exists() else args.model,
        "weights": weights_digest(args.model),
        "decoding": decoding.__dict__,
        "seed": args.seed,
        "legacy_ae062": args.legacy_ae062,
        "prompt_template": None if args.chat_template else settings.prompt_template,
        "chat_template": tokenizer.chat_template,
        "chat_template_kwargs": args.chat_template_kwargs,
        **tokenizer_revision(tokenizer),
        "engine": engine_version(),
        "engine_settings": engine_choices(args, settings),
        "questions": hashlib.sha256(asked.encode()).hexdigest()[:16],
    }


def engine_choices(args: GenerateArguments, settings: Settings) -> dict[str, Any]:
    chosen = {"dtype": "auto", "max_model_len": None, "tensor_parallel_size": 1} | settings.engine
    given = {key: getattr(args, key) for key in ("dtype", "max_model_len", "tensor_parallel_size", "attention_backend")}
    chosen |= {key: value for key, value in given.items() if value is not None}
    chosen["trust_remote_code"] = args.trust_remote_code or chosen.get("trust_remote_code", False)
    return chosen


def describe(decoding: Decoding) -> str:
    if decoding.temperature is None:
        return "temperature per category"
    return "greedy decoding" if decoding.temperature == 0 else f"sampling at temperature {decoding.temperature}"


def generate(
    args: GenerateArguments,
    settings: Settings,
    decoding: Decoding,
    prompter: Prompter,
    questions: list[Question],
    finished: list[dict[Any, dict[str, Any]]],
    files: AnswerFiles,
) -> None:
    """Answer what is missing, turn by turn, into the journal and `finished`."""
    from tqdm import tqdm

    if all(question.key in finished[-1] for question in questions):
        return
    engine = engine_settings(
        **{"model": args.model, "attention_backend": None} | engine_choices(args, settings),
    )
    room, llm, journal = context_length(engine), start_engine(engine), Journal(files.work, "answers.jsonl")
    for turn in range(1, TURNS[args.benchmark] + 1):
        requests = []
        for question in questions:
            if question.key in finished[turn - 1]:
                continue
            ids = prompter.token_ids(conversation(question, finished, turn))
            sampling = decoding.of_category(question.category) | {"seed": noise_seed(args.seed, question.key, turn)}
            if len(ids) >= room:
                warn(f"question {str(question.key)[:60]!r}, turn {turn}: {len(ids)} tokens leave no room to answer")
                keep(journal, finished, turn, question.key, "", "no room", 0)
            else:
                requests.append(Request(question.key, ids, sampling))
        with tqdm(total=len(requests), desc=f"turn {turn}", unit="answer", smoothing=0) as bar:
            for answer in answers(llm, requests):
                keep(journal, finished, turn, *answer)
                bar.update()


def conversation(question: Question, finished: list[dict[Any, dict[str, Any]]], turn: int) -> list[dict[str, str]]:
    """The messages up to the user's `turn`-th, with the model's own earlier answers."""
    messages = []
    for number in range(turn):
        messages.append({"role": "user", "content": question.turns[number]})
        if number < turn - 1:
            messages.append({"role": "assistant", "content": finished[number][question.key]["text"].strip()})
    return messages


def keep(
    journal: Journal,
    finished: list[dict[Any, dict[str, Any]]],
    turn: int,
    key: str | int,
    text: str,
    finish_reason: str,
    num_tokens: int,
) -> None:
    row = {"turn": turn, "key": key, "text": text, "finish_reason": finish_reason, "num_tokens": num_tokens}
    row["time"] = time.time()
    journal.append(row)
    finished[turn - 1][key] = row


def report(questions: list[Question], finished: list[dict[Any, dict[str, Any]]]) -> None:
    """Warn of answers that were cut: a sign of missing stop tokens, or of a template the model was not trained on."""
    rows = [turn[question.key] for turn in finished for question in questions]
    if cut := sum(row["finish_reason"] == "length" for row in rows):
        warn(f"{cut} of {len(rows)} answers were cut at the longest length; if most are, check stop_token_ids")


if __name__ == "__main__":
    main()
