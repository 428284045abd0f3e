"""Grade answers to held-out questions with the scorer's own checks, and sum up a run.

    python grade.py held_out.jsonl output_0.json --output answers_before.json
    python grade.py --summary outputs/instructions

An answer is correct when it keeps the constraint and is an answer to the question. --summary reads answers_before.json
and answers_after.json; writes summary.json: accuracy_before, accuracy_after, n (kinds that were trained on),
unseen_before, unseen_after, n_unseen (other kinds), relevance_* (0 to 1, all kinds), mean_length_* (tokens, all kinds),
seconds (of run.sh's stages) and peak_gb (memory of all processes together); and prints it.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from answer_checks import is_correct, relevance, repetition
from questions import KINDS, words

from simpo.console import UserError, command, say
from simpo.files import write_json

Answer = dict[str, Any]
STAGES = ("convert", "data", "sample", "score", "before", "simpo", "after")


def grade(held_out: Path, responses: Path) -> list[Answer]:
    """The answers in the order of the questions.

    Raises:
        UserError: a question has no answer.
    """
    rows = {row["prompt"]: row for row in json.loads(responses.read_text())}
    answers = []
    for line in held_out.read_text().splitlines():
        task = json.loads(line)
        if task["prompt"] not in rows:
            raise UserError(f"{responses}: has no answer to {task['prompt']!r}")
        row = rows[task["prompt"]]
        text = row["generated_text"]
        answers.append(
            {
                "prompt": task["prompt"],
                "kind": task["kind"],
                "seen": KINDS[task["kind"]].trained,
                "answer": text,
                "correct": is_correct(task, text),
                "relevance": relevance(task["question"], text),
                "repetition": repetition(text),
                "words": len(words(text)),
                "num_tokens": row["num_tokens"],
                "cut": row["finish_reason"] == "length",
            }
        )
    return answers


def mean(answers: list[Answer], field: str, keep: Callable[[Answer], bool] = lambda _: True) -> float:
    return statistics.fmean(row[field] for row in answers if keep(row))


def is_seen(answer: Answer) -> bool:
    return answer["seen"]


def is_unseen(answer: Answer) -> bool:
    return not answer["seen"]


def read_answers(folder: Path, name: str) -> list[Answer]:
    return json.loads((folder / f"answers_{name}.json").read_text())


def summarize(folder: Path) -> dict[str, float]:
    sides = {side: read_answers(folder, side) for side in ("before", "after")}
    summary: dict[str, float] = {}
    for side, answers in sides.items():
        summary |= {
            f"accuracy_{side}": mean(answers, "correct", is_seen),
            f"unseen_{side}": mean(answers, "correct", is_unseen),
            f"relevance_{side}": mean(answers, "relevance"),
            f"mean_length_{side}": mean(answers, "num_tokens"),
        }
    return summary | {
        "n": sum(map(is_seen, answers)),
        "n_unseen": sum(map(is_unseen, answers)),
        "seconds": sum(int((folder / "stages" / stage).read_text().split()[0]) for stage in STAGES),
        "peak_gb": int((folder / "peak_kib").read_text()) * 1024 / 1e9,
    }


LINES = """
kinds trained on   {accuracy_before:.3f} -> {accuracy_after:.3f} correct (n={n})
other kinds        {unseen_before:.3f} -> {unseen_after:.3f} correct (n={n_unseen})
relevance          {relevance_before:.3f} -> {relevance_after:.3f}
tokens             {mean_length_before:.1f} -> {mean_length_after:.1f}
{seconds} seconds, {peak_gb:.1f} GB at most"""


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", type=Path, nargs="?")
    parser.add_argument("responses", type=Path, nargs="?")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--summary", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    if args.summary:
        summary = summarize(args.summary)
        write_json(args.summary / "summary.json", summary)
        say(LINES.format(**summary))
    elif args.held_out and args.responses and args.output:
        answers = grade(args.held_out, args.responses)
        write_json(args.output, answers)
        say(f"{args.output}: {mean(answers, 'correct'):.3f} correct, {mean(answers, 'words'):.1f} words on average")
    else:
        parser.error("give held_out, responses and --output, or --summary")


if __name__ == "__main__":
    main()
