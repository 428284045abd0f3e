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
                                     MT-Bench {question_id, model, judge, user_prompt, judgment, score, turn, tstamp};
                                     beside that `rule` (which of several verdicts counts) and, where a question got
                                     no reply, `failed` (why)
    NAME/ANNOTATOR/annotations.json  AlpacaEval
    ....settings.json beside it      judge, parameters as they were sent, prompts, and digests of what was judged
    judging/JUDGE/NAME/journal/      every reply, whole; a run that was killed continues from it

A question that the judge refuses is listed and left without a verdict; --retry_failed asks for those again.
"""

import hashlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import find, names
from parts import JudgeFiles, Judging
from records import Row, shorten
from simpo.config import H4ArgumentParser
from simpo.console import UserError, command, progress, say, warn
from simpo.files import write_json
from simpo.folder import check_settings, lock_folder, recorded_settings
from simpo.judge.client import Judge
from simpo.judge.endpoint import Endpoint, EndpointArguments, address_of, check_key
from simpo.judge.replies import Replies, open_journal, read_replies
from simpo.judge.tasks import Outcome
from simpo.judge.work import work_off
from thoughts import HELP, Thinking


@dataclass
class JudgeArguments(EndpointArguments):
    """Which answers, which judge, and how to reach it."""

    benchmark: str = field(default="", metadata={"help": f"One of {', '.join(names())}."})
    answers: str = field(default="", metadata={"help": "The model's answer file."})
    references: str | None = field(
        default=None, metadata={"help": "Baseline answers, reference answers or reference outputs."}
    )
    judge_prompts: str | None = field(default=None, metadata={"help": "The benchmark's own file of judge prompts."})
    judge: str = field(
        default="gpt-4-1106-preview", metadata={"help": "The judge's model name at the endpoint (AlpacaEval's too)."}
    )
    questions: str | None = field(default=None, metadata={"help": "Local question file; the hub's by default."})
    thinking: Thinking = field(default="strip", metadata={"help": HELP})
    output_dir: str | None = field(default=None, metadata={"help": "Default: outputs/eval/BENCHMARK."})
    retry_failed: bool = field(default=False, metadata={"help": "Ask again for what the judge refused."})

    def __post_init__(self):
        super().__post_init__()
        benchmark = find(self.benchmark)
        for key in ("answers", *benchmark.needs):
            if not getattr(self, key):
                raise UserError(f"{key}: not given (--{key} FILE)")
        if not self.judge.strip():
            raise UserError("judge: not given (--judge NAME)")

    @property
    def files(self) -> JudgeFiles:
        return JudgeFiles(self.answers, self.references, self.judge_prompts, self.questions, self.thinking)


@command
def main() -> None:
    args = H4ArgumentParser(JudgeArguments).parse()
    check_key()
    endpoint = Endpoint(args.judge, args.base_url, args.timeout, args.concurrency)
    address_of(args.base_url)
    benchmark = find(args.benchmark)
    judging = benchmark.judging(args.files)
    folder, name = Path(args.output_dir or f"outputs/eval/{args.benchmark}"), judging.judge_name or args.judge
    output = benchmark.judgment_files(folder, safe_name(name), safe_name(judging.model))

    with lock_folder(output.work):
        earlier = read_replies(output.work, {task.key for task in judging.tasks})
        replies = Replies(judging.tasks, judging.reading, earlier, lambda o: args.retry_failed and bool(o.failed))
        before = recorded_settings(output.settings).get("sent") if earlier else None
        record = record_of(args, judging) | {"sent": before}
        check_settings(output.settings, record, bool(earlier))
        pending = replies.pending()
        say(
            f"{judging.model}: {len(judging.tasks)} judgments by {name}, "
            f"{len(judging.tasks) - len(pending)} already there"
        )
        if pending:
            judge = Judge(endpoint, before if isinstance(before, dict) else record["parameters"])
            done = work_off(judge, replies, open_journal(output.work))
            with closing(done), progress(len(pending), benchmark.title, "judgment") as bar:
                for number, _ in enumerate(done):
                    bar.update()
                    if number == 0:
                        write_json(output.settings, record | {"sent": judge.parameters})
        outcomes = {task.key: replies.outcome(task) for task in judging.tasks}
        rows = judging.rows(outcomes, args.judge)
        report(args, judging, replies, outcomes, output.work)
        benchmark.write_judgments(output.answers, rows)
    say(f"wrote {output.answers}")


def record_of(args: JudgeArguments, judging: Judging) -> Row:
    """What all judgments of a file must have in common: another judge, other answers or prompts are refused."""
    files = {key: getattr(args, key) for key in ("answers", "references", "judge_prompts", "questions")}
    digests = {
        key: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file and Path(file).is_file() else file
        for key, file in files.items()
    }
    parameters = args.parameters(judging.parameters)
    record = {"benchmark": args.benchmark, "judge": args.judge, **digests, "thinking": args.thinking}
    return record | {"parameters": parameters, "rule": judging.reading.rule, **judging.record}


def report(args: JudgeArguments, judging: Judging, replies: Replies, outcomes: dict[Any, Outcome], work: Path) -> None:
    """Warn of judgments that failed or hold no verdict, and of an endpoint that served another model."""
    failed = [(task, outcomes[task.key].failed) for task in judging.tasks if outcomes[task.key].failed]
    for task, reason in failed[:5]:
        warn(f"question {shorten(str(task.question_id), 40)}, part {task.part}: no reply: {shorten(reason, 200)}")
    if failed:
        warn(
            f"{len(failed)} of {len(judging.tasks)} judgments got no reply (all are listed in {work / 'journal'}); "
            "--retry_failed asks for them again"
        )
    without = sum(outcome.verdict is None and not outcome.failed for outcome in outcomes.values())
    if judging.reading.patterns and without:
        warn(f"{without} judgments hold no verdict; scoring leaves them out")
    thought = sum("thinking" in outcome.rule for outcome in outcomes.values())
    if thought:
        say(f"{thought} judgments were read after the judge's thoughts, the last verdict counting")
    served = {str(row["served_by"]) for rows in replies.rows.values() for row in rows if row.get("served_by")}
    if others := sorted(served - {args.judge}):
        warn(f"asked for {args.judge}, the endpoint answered as {', '.join(others)}")


def safe_name(name: str) -> str:
    """A model's name as part of a path."""
    return name.replace("/", "__").replace("\0", "") if name.strip(".") else f"_{name}"


if __name__ == "__main__":
    main()
