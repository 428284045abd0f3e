"""Answer a benchmark's questions with a model, in the official tools' file format.

    python eval/generate_answers.py --benchmark alpacaeval2 --model princeton-nlp/Llama-3-Instruct-8B-SimPO \
        --config eval/alpacaeval2/configs/Llama-3-Instruct-8B-SimPO.yaml --legacy_ae062

Reads the questions from the hub, or from --questions FILE:
    alpacaeval2  {instruction, dataset}       arenahard  {question_id, turns: [{content}]}, or {uid, prompt}
    mt-bench     {question_id, category, turns: [text, text]}
Writes below output_dir (default outputs/eval/BENCHMARK):
    alpacaeval2  NAME/model_outputs.json: list of {dataset, instruction, output, generator}
    arenahard    model_answer/NAME.jsonl: {question_id, answer_id, model_id, choices: [{index, turns: [{content,
                 token_len}]}], tstamp}, or, where the questions have a uid, {uid, ans_id, model, messages, tstamp,
                 metadata: {token_len}}; mt-bench the first with turns: [text, text]
and beside it settings: model, weights, decoding, templates, tokenizer revision, engine version. A journal keeps each
answer whole, with its finish_reason and num_tokens; a run that was killed continues from it.

Prompts go to vLLM as token ids with exactly one BOS; stop tokens are not part of the answers. A question that the model
cannot be asked (too long, refused by the chat template) is listed and answered with the empty text; --retry_failed asks
again. --legacy_ae062 is what alpaca-eval 0.6.2 probably did, inferred from its code: see choose_decoding.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import find, names
from benchmarks.base import Benchmark
from decoding import Decoding, Settings, choose_decoding
from parts import Question
from prompting import Prompter, check_stop_ids, load_tokenizer, tokenizer_revision
from records import Row, shorten
from simpo.chat.thinking import opens_thinking, split_thinking
from simpo.chat.variables import keep_date
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, progress, say, warn
from simpo.engine.vllm import (
    Request,
    context_length,
    engine_settings,
    engine_version,
    generate,
    noise_seed,
    start_engine,
)
from simpo.files import weights_digest
from simpo.folder import Journal, check_settings, lock_folder, recorded_settings
from thoughts import HELP, Thinking, take_off

JOURNAL = "answers.jsonl"
NUMBER = (int, float)
FIELDS = {"turn": int, "key": (str, int), "text": str, "finish_reason": str, "num_tokens": int, "time": NUMBER}


@dataclass
class GenerateArguments:
    """Which benchmark, which model, and how to sample. What is not given comes from the configuration."""

    benchmark: str = field(default="", metadata={"help": f"One of {', '.join(names())}."})
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
        default=False, metadata={"help": "Decode do_sample: true greedily, as alpaca-eval 0.6.2 probably did."}
    )
    thinking: Thinking = field(default="strip", metadata={"help": HELP})
    retry_failed: bool = field(default=False, metadata={"help": "Ask again what the model could not be asked before."})
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
    max_num_seqs: int | None = field(
        default=None, metadata={"help": "Answers made at a time; vLLM's default for the device."}
    )
    gpu_memory_utilization: float | None = field(
        default=None, metadata={"help": "Part of each GPU's memory to fill; vLLM's default."}
    )
    attention_backend: str | None = field(default=None, metadata={"help": "vLLM's attention backend."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def __post_init__(self):
        find(self.benchmark)
        if not self.model:
            raise UserError("model: not given (--model NAME_OR_FOLDER)")
        if self.name is not None and (not self.name.strip(".") or "/" in self.name):
            raise UserError(f"name: {self.name!r} cannot be part of a file's name")
        for key in ("tensor_parallel_size", "max_model_len", "max_num_seqs"):
            if (value := getattr(self, key)) is not None and not 1 <= value < 2**31:
                raise UserError(f"{key}: must be at least 1 and below 2^31, got {value}")
        if not 0 < (1 if self.gpu_memory_utilization is None else self.gpu_memory_utilization) <= 1:
            raise UserError(f"gpu_memory_utilization: must be in (0, 1], got {self.gpu_memory_utilization}")


@command
def main() -> None:
    args = H4ArgumentParser(GenerateArguments).parse()
    benchmark = find(args.benchmark)
    settings = benchmark.read_settings(args.config) if args.config else Settings()
    given = {key: getattr(args, key) for key in ("temperature", "top_p", "max_tokens", "stop_token_ids")}
    decoding = choose_decoding(benchmark.decoding, settings, given, args.legacy_ae062)
    questions = benchmark.read_questions(args.questions)
    name = args.name or settings.name or Path(args.model).name
    files = benchmark.files(Path(args.output_dir or f"outputs/eval/{args.benchmark}"), name)
    template, recorded = args.chat_template or settings.chat_template, recorded_settings(files.settings)
    variables = keep_date(args.chat_template_kwargs, recorded.get("chat_template_kwargs"))
    tokenizer, args.chat_template_kwargs = load_tokenizer(args.model, template, args.trust_remote_code, variables)
    check_stop_ids(decoding, len(tokenizer))
    prompter = Prompter(tokenizer, None if args.chat_template else settings.prompt_template)

    with lock_folder(files.work):
        answers = Answers(files.work, benchmark, args.thinking, args.retry_failed)
        counted_by, count = benchmark.token_counter(tokenizer)
        record = record_of(args, settings, decoding, questions, tokenizer) | {"token_len": counted_by}
        check_settings(files.settings, record, has_output=answers.found)
        say(f"{len(questions)} questions of {benchmark.title}, {len(answers.turns[-1])} answered; {describe(decoding)}")
        if any(question.key not in turn for turn in answers.turns for question in questions):
            size = {name: getattr(args, name) for name in ("max_num_seqs", "gpu_memory_utilization")}
            engine = engine_settings(args.model, **{"attention_backend": None} | engine_choices(args, settings) | size)
            answer(args, benchmark, engine, decoding, prompter, questions, answers)
        texts = answers.texts(questions, str(files.answers))
        rows = [
            benchmark.answer_row(name, question, texts[question.key], answers.turns[-1][question.key]["time"], count)
            for question in questions
        ]
        report(questions, answers)
        benchmark.write_answers(files.answers, rows)
    say(f"wrote {files.answers} and {files.settings}")


class Answers:
    """The answers of earlier runs and of this one, by turn and question.

    A journal's row: {turn, key, text, finish_reason, num_tokens, time}; opened, where the prompt ended in the tag that
    opens a block of thoughts; failed, where there is no answer: why.

    Args:
        thinking: what becomes of thoughts: strip, keep or fail.
        retry_failed: forget the failures of earlier runs.
    """

    def __init__(self, work: Path, benchmark: Benchmark, thinking: str, retry_failed: bool = False):
        self.work, self.thinking = work, thinking
        self.turns: list[dict[Any, Row]] = [{} for _ in range(benchmark.turns)]
        for row in Journal.read(work, JOURNAL, FIELDS):
            if 1 <= row["turn"] <= benchmark.turns:
                self.turns[row["turn"] - 1][row["key"]] = row
        self.found = any(self.turns)
        if retry_failed:
            self.turns = [{k: row for k, row in turn.items() if not row.get("failed")} for turn in self.turns]

    def keep(self, journal: Journal, turn: int, key: str | int, opened: bool = False, **answer: Any) -> None:
        row = {"turn": turn, "key": key, **answer, "opened": opened, "time": time.time()}
        journal.append(row)
        self.turns[turn - 1][key] = row

    def fail(self, journal: Journal, turn: int, key: str | int, reason: str) -> None:
        warn(f"question {shorten(str(key))!r}, turn {turn}: {reason}; its answer is empty")
        self.keep(journal, turn, key, text="", finish_reason="failed", num_tokens=0, failed=reason)

    def conversation(self, question: Question, turn: int) -> list[dict[str, str]]:
        """The messages up to the user's `turn`-th, with the model's own earlier answers as they are judged."""
        messages = []
        for number in range(turn):
            messages.append({"role": "user", "content": question.turns[number]})
            if number < turn - 1:
                row = self.turns[number][question.key]
                text = (
                    row["text"]
                    if self.thinking == "keep"
                    else split_thinking(row["text"], row.get("opened", False)).answer
                )
                messages.append({"role": "assistant", "content": text.strip()})
        return messages

    def texts(self, questions: list[Question], where: str) -> dict[Any, list[str]]:
        """{question key: the text of each turn, as it is judged}."""
        rows = {question.key: [turn[question.key] for turn in self.turns] for question in questions}
        opened = {key: [row.get("opened", False) for row in own] for key, own in rows.items()}
        return take_off(self.thinking, {key: [row["text"] for row in own] for key, own in rows.items()}, where, opened)


def record_of(
    args: GenerateArguments, settings: Settings, decoding: Decoding, questions: list[Question], tokenizer: Any
) -> Row:
    """What all answers of a file must have in common."""
    asked = json.dumps([[question.key, *question.turns] for question in questions], ensure_ascii=False)
    return {
        "benchmark": args.benchmark,
        "model": str(Path(args.model).resolve()) if Path(args.model).exists() else args.model,
        "weights": weights_digest(args.model),
        "decoding": decoding.__dict__,
        "seed": args.seed,
        "legacy_ae062": args.legacy_ae062,
        "thinking": args.thinking,
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
        return "the benchmark's temperatures"
    return "greedy decoding" if decoding.temperature == 0 else f"sampling at temperature {decoding.temperature}"


def answer(
    args: GenerateArguments,
    benchmark: Benchmark,
    engine: dict[str, Any],
    decoding: Decoding,
    prompter: Prompter,
    questions: list[Question],
    answers: Answers,
) -> None:
    """Answer what is missing, turn by turn, into the journal.

    Raises:
        UserError: no question can be asked; or the engine does not start.
    """
    journal, room, llm = Journal(answers.work, JOURNAL, FIELDS), context_length(engine), None
    for turn, done in enumerate(answers.turns, start=1):
        requests, opened, refused = [], {}, {}
        for question in questions:
            if question.key in done:
                continue
            try:
                ids = prompt_ids(prompter, answers, question, turn, room)
            except UserError as error:
                refused[question.key] = str(error)
                continue
            opened[question.key] = opens_thinking(prompter.tokenizer.decode(ids[-16:]))
            noise = {"seed": noise_seed(args.seed, turn, question.key)}
            requests.append(Request(question.key, ids, benchmark.sampling(decoding, question) | noise))
        if refused and not requests and not answers.found:
            raise UserError(f"no question can be asked; the first: {next(iter(refused.values()))}")
        if requests and llm is None:
            llm = start_engine(engine)
        for key, reason in refused.items():
            answers.fail(journal, turn, key, reason)
        with progress(len(requests), f"turn {turn}", "answer") as bar:
            for response in generate(llm, requests) if requests else ():
                answers.keep(journal, turn, opened=opened[response.key], **response._asdict())
                bar.update()


def prompt_ids(prompter: Prompter, answers: Answers, question: Question, turn: int, room: int) -> list[int]:
    """The prompt of a question's turn.

    Raises:
        UserError: it cannot be asked, and why.
    """
    if any(earlier[question.key].get("failed") for earlier in answers.turns[: turn - 1]):
        raise UserError("an earlier turn has no answer")
    ids = prompter.token_ids(answers.conversation(question, turn))
    if len(ids) >= room:
        raise UserError(f"{len(ids)} tokens leave no room to answer (max_model_len {room})")
    return ids


def report(questions: list[Question], answers: Answers) -> None:
    """Warn of answers that were cut: a sign of missing stop tokens, or of a template the model was not trained on."""
    rows = [turn[question.key] for turn in answers.turns for question in questions]
    if cut := sum(row["finish_reason"] == "length" for row in rows):
        warn(f"{cut} of {len(rows)} answers were cut at the longest length; if most are, check stop_token_ids")
    if failed := sum("failed" in row for row in rows):
        warn(f"{failed} of {len(rows)} answers are empty: their questions could not be asked (see above)")


if __name__ == "__main__":
    main()
