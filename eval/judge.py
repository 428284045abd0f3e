"""Have a judge compare or grade a model's answers, through any OpenAI-compatible endpoint.

    export OPENAI_API_KEY=...                                   # never written anywhere
    python eval/judge.py --benchmark arenahard --answers outputs/eval/arenahard/model_answer/NAME.jsonl \
        --references gpt-4-0314.jsonl --judge_prompts judge_config.yaml --judge gpt-4-1106-preview
    python eval/judge.py --benchmark mt-bench --answers outputs/eval/mt-bench/model_answer/NAME.jsonl \
        --references reference_answer/gpt-4.jsonl --judge_prompts judge_prompts.jsonl --judge gpt-4
    python eval/judge.py --benchmark alpacaeval2 --answers outputs/eval/alpacaeval2/NAME/model_outputs.json \
        --references alpaca_eval_gpt4_baseline.json

A local judge: `vllm serve MODEL`, then --judge MODEL --base_url http://localhost:8000/v1.
Reads the answers of generate_answers.py (the official tools' format); --references: the baseline's answers
(Arena-Hard), the reference answers of math, reasoning and coding (MT-Bench), the reference outputs (AlpacaEval);
--judge_prompts: the benchmark's own judge_config.yaml or judge_prompts.jsonl (AlpacaEval: an annotator of alpaca-eval).
Writes below output_dir (default outputs/eval/BENCHMARK):
    model_judgment/JUDGE/NAME.jsonl  Arena-Hard {question_id, model, judge, games: [{user_prompt, judgment, score}]},
                                     MT-Bench {question_id, model, judge, user_prompt, judgment, score, turn, tstamp}
    NAME/JUDGE/annotations.json      AlpacaEval
    ....settings.json beside it      judge, prompts, and digests of what was judged
    judging/JUDGE/NAME/journal/      every reply, whole; a run that was killed continues from it
"""

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_judging import annotate, annotator_config, read_pairs
from judge_client import Endpoint, ask, check_endpoint, check_key, work_off
from judging import (
    JudgeSettings,
    Task,
    arena_hard_rows,
    arena_hard_tasks,
    mt_bench_rows,
    mt_bench_tasks,
    read_answers,
    read_arena_hard_prompts,
    read_mt_bench_prompts,
)
from mt_bench import WITH_REFERENCE
from questions import BENCHMARKS, Question, check_benchmark, load_questions
from records import Row, write_lines
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, say, warn
from simpo.files import write_json
from simpo.folder import Journal, check_settings, lock_folder


@dataclass
class JudgeArguments:
    """Which answers, which judge, and how to reach it."""

    benchmark: str = field(default="", metadata={"help": f"One of {', '.join(BENCHMARKS)}."})
    answers: str = field(default="", metadata={"help": "The model's answer file."})
    references: str = field(default="", metadata={"help": "Baseline answers, reference answers or reference outputs."})
    judge_prompts: str | None = field(default=None, metadata={"help": "The benchmark's own file of judge prompts."})
    judge: str = field(
        default="gpt-4-1106-preview", metadata={"help": "The judge's model name at the endpoint (AlpacaEval's too)."}
    )
    base_url: str | None = field(default=None, metadata={"help": "The endpoint, ending in /v1; OpenAI's by default."})
    questions: str | None = field(default=None, metadata={"help": "Local question file; the hub's by default."})
    output_dir: str | None = field(default=None, metadata={"help": "Default: outputs/eval/BENCHMARK."})
    concurrency: int = field(default=8, metadata={"help": "Requests under way at a time."})
    timeout: float = field(default=300.0, metadata={"help": "Seconds to wait for one reply."})

    def __post_init__(self):
        check_benchmark(self.benchmark)
        needed = ["answers", "references"] + ["judge_prompts"] * (self.benchmark != "alpacaeval2")
        for key in needed:
            if not getattr(self, key):
                raise UserError(f"{key}: not given (--{key} FILE)")
        if self.concurrency < 1 or self.timeout <= 0:
            raise UserError("concurrency must be at least 1 and timeout above 0")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.judge, self.base_url, self.timeout, self.concurrency)


@command
def main() -> None:
    args = H4ArgumentParser(JudgeArguments).parse()
    check_key()
    folder = Path(args.output_dir or f"outputs/eval/{args.benchmark}")
    output = judge_alpacaeval2(args, folder) if args.benchmark == "alpacaeval2" else judge_by_prompts(args, folder)
    say(f"wrote {output}")


def judge_by_prompts(args: JudgeArguments, folder: Path) -> Path:
    """Arena-Hard and MT-Bench: ask for what is missing, then write the whole judgment file; returns its path."""
    questions = load_questions(args.benchmark, args.questions)
    model, tasks, settings = make_tasks(args, questions)
    judge = safe_name(args.judge)
    output = folder / "model_judgment" / judge / f"{safe_name(model)}.jsonl"
    with lock_folder(work := folder / "judging" / judge / safe_name(model)):
        replies = read_replies(work)
        record(args, output.with_suffix(".settings.json"), {"max_tokens": settings.max_tokens}, bool(replies))
        pending = [task for task in tasks if not task.is_done(replies.get(task.key, []))]
        say(f"{model}: {len(tasks)} judgments by {args.judge}, {len(tasks) - len(pending)} already there")
        journal = Journal(work, "replies.jsonl")

        def judge_task(client: Any, task: Task) -> None:
            own = replies.setdefault(task.key, [])
            while not task.is_done(own):
                reply = ask(client, args.judge, task.messages(own), settings.temperature, settings.max_tokens)
                row = {"question_id": task.question_id, "part": task.part, "attempt": len(own) + 1, **reply}
                row["time"] = time.time()
                journal.append(row)
                own.append(row)

        if pending:
            check_endpoint(args.endpoint)
            work_off(pending, judge_task, args.endpoint, args.benchmark)
        make_rows = arena_hard_rows if args.benchmark == "arenahard" else mt_bench_rows
        rows = make_rows(args.judge, model, tasks, replies)
        report(args, rows, replies)
        write_lines(output, rows)
    return output


def make_tasks(args: JudgeArguments, questions: list[Question]) -> tuple[str, list[Task], JudgeSettings]:
    """The model's name, all judgments to get, and how the judge decodes.

    Raises:
        UserError: a file is missing, of another benchmark, or does not cover the questions.
    """
    if args.benchmark == "arenahard":
        settings, what = read_arena_hard_prompts(args.judge_prompts), "Arena-Hard answers"
        model, answers = read_answers(args.answers, questions, args.benchmark, what)
        _, baseline = read_answers(args.references, questions, args.benchmark, what, more=True)
        return model, arena_hard_tasks(args.judge_prompts, settings, questions, answers, baseline), settings
    settings, what = read_mt_bench_prompts(args.judge_prompts), "MT-Bench answers"
    model, answers = read_answers(args.answers, questions, args.benchmark, what)
    needing = [question for question in questions if question.category in WITH_REFERENCE]
    references = read_answers(args.references, needing, args.benchmark, what, more=True)[1] if needing else {}
    return model, mt_bench_tasks(args.judge_prompts, settings, questions, answers, references), settings


def judge_alpacaeval2(args: JudgeArguments, folder: Path) -> Path:
    """AlpacaEval through its own package; returns the annotations' path."""
    model, own, references = read_pairs(args.answers, args.references)
    annotator, config = annotator_config(args.judge_prompts, args.endpoint)
    output = folder / safe_name(model) / annotator / "annotations.json"
    with lock_folder(work := folder / "judging" / annotator / safe_name(model)):
        done = {row["instruction"]: row for row in Journal.read(work, "replies.jsonl")}
        record(args, output.with_name("settings.json"), {"annotator": annotator}, bool(done))
        say(f"{model}: {len(own)} judgments by {annotator} ({args.judge}), {len(done)} already there")
        missing = [number for number, row in enumerate(own) if row["instruction"] not in done]
        if missing:
            check_endpoint(args.endpoint)
            journal = Journal(work, "replies.jsonl")
            pairs = [own[number] for number in missing], [references[number] for number in missing]
            annotate(config, work, *pairs, args.endpoint, journal)
            done = {row["instruction"]: row for row in Journal.read(work, "replies.jsonl")}
        write_json(output, [done[row["instruction"]] for row in own])
    return output


def record(args: JudgeArguments, path: Path, more: Row, has_output: bool) -> None:
    """Record what the judgments are of; refuse to go on with other answers, prompts or another judge."""
    files = {key: getattr(args, key) for key in ("answers", "references", "judge_prompts", "questions")}
    digests = {
        key: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file and Path(file).is_file() else file
        for key, file in files.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    check_settings(path, {"benchmark": args.benchmark, "judge": args.judge, **digests, **more}, has_output)


def read_replies(work: Path) -> dict[Any, list[Row]]:
    """Replies of earlier runs, by (question_id, part), in the order of the attempts."""
    replies: dict[Any, list[Row]] = {}
    for row in Journal.read(work, "replies.jsonl"):
        replies.setdefault((row["question_id"], row["part"]), []).append(row)
    return replies


def report(args: JudgeArguments, rows: list[Row], replies: dict[Any, list[Row]]) -> None:
    """Warn of judgments without a verdict, and of an endpoint that served another model than the one asked for."""
    if args.benchmark == "arenahard":
        without = sum(game["score"] is None for row in rows for game in row["games"])
    else:
        without = sum(row["score"] == -1 for row in rows)
    if without:
        warn(f"{without} judgments hold no verdict; scoring leaves them out")
    if others := sorted({str(reply["served_by"]) for own in replies.values() for reply in own} - {args.judge}):
        warn(f"asked for {args.judge}, the endpoint answered as {', '.join(others)}")


def safe_name(name: str) -> str:
    """A model's name as part of a path."""
    return name.replace("/", "__")


if __name__ == "__main__":
    main()
