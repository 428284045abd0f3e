"""Tables of runs of run.sh and compare.sh: one folder for each seed, the same models in all.

    python table.py outputs/instructions_1 outputs/instructions_2 outputs/instructions_3

Prints, as Markdown, over all questions of all folders: share of correct answers with its standard error, side effects;
each kind of constraint; SimPO's gain over each other model on the same questions; what length explains; examples of
what got worse.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from grade import Answer, is_seen, is_unseen, mean, read_answers
from questions import KINDS

from simpo.console import command, say

NAMES = {"before": "before", "after": "SimPO", "dpo": "DPO", "sft": "SFT on the chosen"}
BANDS = (10, 15, 20, 30, 45, 70)  # words


def share(answers: Sequence[Answer]) -> str:
    p = mean(answers, "correct")
    return f"{p:.3f} ± {(p * (1 - p) / len(answers)) ** 0.5:.3f}"


def difference(answers: Sequence[Answer], others: Sequence[Answer]) -> tuple[float, float]:
    """Mean difference in correct answers to the same questions, and its standard error."""
    pairs = zip(answers, others, strict=True)
    differences = [answer["correct"] - other["correct"] for answer, other in pairs]
    return statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def band(answer: Answer) -> int:
    return sum(answer["words"] >= bound for bound in BANDS)


def length_matched(before: Sequence[Answer], after: Sequence[Answer]) -> tuple[float, float, float]:
    """What the first model's answers would score if they were as long as the second's.

    Returns:
        Its share correct, reweighted to the second's lengths; the second's, both on the lengths that both have; and the
        part of the second's answers that have these.
    """
    rates = {}
    for number in range(len(BANDS) + 1):
        if rows := [answer["correct"] for answer in before if band(answer) == number]:
            rates[number] = statistics.fmean(rows)
    common = [answer for answer in after if band(answer) in rates]
    return statistics.fmean(rates[band(a)] for a in common), mean(common, "correct"), len(common) / len(after)


def overview(runs: dict[str, list[Answer]], perplexities: dict[str, list[float]]) -> list[str]:
    lines = [
        "| greedy answers | kinds trained on | other kinds | relevance | words | repetition | cut | perplexity |",
        "|---" * 8 + "|",
    ]
    for name, answers in runs.items():
        seen, unseen = list(filter(is_seen, answers)), list(filter(is_unseen, answers))
        cells = [NAMES[name], share(seen), share(unseen), f"{mean(answers, 'relevance'):.3f}"]
        cells += [f"{mean(answers, 'words'):.1f}", f"{mean(answers, 'repetition'):.3f}", f"{mean(answers, 'cut'):.2f}"]
        cells += [f"{statistics.fmean(perplexities[name]):.2f}" if perplexities[name] else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def kinds(runs: dict[str, list[Answer]]) -> list[str]:
    lines = [f"| kind | n | {' | '.join(NAMES[name] for name in runs)} |", "|---" * (len(runs) + 2) + "|"]
    for kind, told in KINDS.items():
        rows = {name: [a for a in answers if a["kind"] == kind] for name, answers in runs.items()}
        if not rows["before"]:
            continue
        label = kind if told.trained else f"{kind} (not trained on)"
        shares = " | ".join(f"{mean(answers, 'correct'):.2f}" for answers in rows.values())
        lines.append(f"| {label} | {len(rows['before'])} | {shares} |")
    return lines


def readings(runs: dict[str, list[Answer]]) -> list[str]:
    lines = []
    after = list(filter(is_seen, runs["after"]))
    for name, answers in runs.items():
        other = list(filter(is_seen, answers))
        if name == "after":
            continue
        gain, error = difference(after, other)
        lines.append(f"- SimPO against {NAMES[name]}, kinds trained on: {100 * gain:+.1f} ± {100 * error:.1f} points")
    matched, reached, part = length_matched(list(filter(is_seen, runs["before"])), after)
    lines.append(
        f"- length-matched: answers before, reweighted to the lengths after ({part:.0%} of these are found): "
        f"{matched:.3f} against {reached:.3f}"
    )
    return lines


def worse(runs: dict[str, list[Answer]], count: int = 5) -> list[str]:
    pairs = list(zip(runs["before"], runs["after"], strict=True))
    lost = [(a, b) for a, b in pairs if a["correct"] and not b["correct"]]
    lines = [f"{len(lost)} of {sum(a['correct'] for a, _ in pairs)} answers that were correct no longer are:", ""]
    for old, new in lost[:: max(1, len(lost) // count)][:count]:
        lines += [f"- {old['prompt']}", f"  - before: {old['answer']!r}", f"  - after: {new['answer']!r}"]
    return lines


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    args = parser.parse_args()
    names = [name for name in NAMES if all((folder / f"answers_{name}.json").is_file() for folder in args.folder)]
    runs = {name: [row for folder in args.folder for row in read_answers(folder, name)] for name in names}
    files = {name: [folder / f"perplexity_{name}.json" for folder in args.folder] for name in names}
    perplexities = {
        name: [json.loads(file.read_text())["perplexity"] for file in found if file.is_file()]
        for name, found in files.items()
    }
    for part in (overview(runs, perplexities), kinds(runs), readings(runs), worse(runs)):
        say("\n".join(part) + "\n")


if __name__ == "__main__":
    main()
