"""Grade answers to held-out tasks with the tasks' own checker, and sum up a run.

    python grade.py held_out.jsonl output_0.json --output answers_before.json
    python grade.py --summary outputs/quickstart
    python grade.py --table outputs/seed_1 outputs/seed_2

--summary reads answers_before.json and answers_after.json, writes summary.json (accuracies, mean lengths in tokens,
seconds of all stages) and the line that run.sh ends with. --table prints the accuracies of every answers_*.json in the
folders, with standard errors.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from tasks import Task, is_correct

from simpo.console import command
from simpo.files import write_json

SIDES = {"before", "after"}


def grade(held_out: Path, responses: Path) -> list[dict[str, Any]]:
    """The answers in the order of the tasks, each with whether it is right."""
    rows = {row["prompt"]: row for row in json.loads(responses.read_text())}
    tasks = [Task(**json.loads(line)) for line in held_out.read_text().splitlines()]
    return [
        {
            "prompt": task.prompt,
            "family": task.family,
            "expected": task.answer,
            "answer": rows[task.prompt]["generated_text"],
            "correct": is_correct(task, rows[task.prompt]["generated_text"]),
            "num_tokens": rows[task.prompt]["num_tokens"],
        }
        for task in tasks
    ]


def accuracy(answers: list[dict[str, Any]]) -> float:
    return statistics.fmean(row["correct"] for row in answers)


def mean_length(answers: list[dict[str, Any]]) -> float:
    return statistics.fmean(row["num_tokens"] for row in answers)


def summarize(folder: Path) -> dict[str, float]:
    before, after = (json.loads((folder / f"answers_{side}.json").read_text()) for side in ("before", "after"))
    return {
        "accuracy_before": accuracy(before),
        "accuracy_after": accuracy(after),
        "n": len(after),
        "mean_length_before": mean_length(before),
        "mean_length_after": mean_length(after),
        # the reward model is trained beside other stages: what counts is the wait for it
        "seconds": sum(int(f.read_text().split()[0]) for f in (folder / "stages").iterdir() if f.name != "reward"),
    }


def table(folders: list[Path]) -> str:
    """A Markdown table: a row for each model, a column for each folder, and the mean gain over all folders."""
    names = ["before", "after", *sorted({f.stem[8:] for d in folders for f in d.glob("answers_*.json")} - SIDES)]
    lines = [
        f"| answers | {' | '.join(folder.name for folder in folders)} | mean gain (points) | tokens | got worse |",
        "|---" * (len(folders) + 4) + "|",
    ]
    runs = [{name: json.loads((d / f"answers_{name}.json").read_text()) for name in names} for d in folders]
    for name in names:
        shares = [accuracy(run[name]) for run in runs]
        cells = [f"{p:.3f} ± {(p * (1 - p) / len(run[name])) ** 0.5:.3f}" for p, run in zip(shares, runs, strict=True)]
        gains = [100 * (p - accuracy(run["before"])) for p, run in zip(shares, runs, strict=True)]
        spread = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
        worse = [
            sum(a["correct"] and not b["correct"] for a, b in zip(run["before"], run[name], strict=True))
            for run in runs
        ]
        length = statistics.fmean(mean_length(run[name]) for run in runs)
        lines.append(
            f"| {name} | {' | '.join(cells)} | {statistics.fmean(gains):+.1f}{spread} | {length:.1f} "
            f"| {', '.join(map(str, worse))} |"
        )
    return "\n".join(lines)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", type=Path, nargs="?")
    parser.add_argument("responses", type=Path, nargs="?")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--summary", type=Path, metavar="FOLDER")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FOLDER")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    if args.summary:
        summary = summarize(args.summary)
        write_json(args.summary / "summary.json", summary)
        line = "accuracy before {accuracy_before:.3f} after {accuracy_after:.3f} (n={n})".format(**summary)
        (args.summary / "summary.txt").write_text(line + "\n")
        return
    answers = grade(args.held_out, args.responses)
    write_json(args.output, answers)
    print(f"{args.output}: {accuracy(answers):.3f} right, {mean_length(answers):.1f} tokens on average")


if __name__ == "__main__":
    main()
