"""MT-Bench: ratings of single-answer grading to means per turn and category."""

import re

import numpy as np

from records import Row, read_rows, refuse_gaps
from simpo.console import UserError, warn

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_QUESTION, PER_CATEGORY = 81, 10
QUESTIONS = range(FIRST_QUESTION, FIRST_QUESTION + PER_CATEGORY * len(CATEGORIES))
# The benchmark's temperatures, for categories that it does not know as for its own.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURES |= {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
WITH_REFERENCE = ("math", "reasoning", "coding")
NO_RATING = -1
QUESTION_FIELDS = {"question_id": int, "category": str, "turns": list}
JUDGMENT_FIELDS = {"question_id": int, "model": str, "turn": int, "judgment": str, "score": (int, float)}


def parse_rating(text: str) -> float:
    """The first [[number]] of a judge's reply, else the first [number], else -1."""
    match = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    return float(match[1]) if match else NO_RATING


def known_categories(questions: str | None) -> dict[int, str]:
    """{question_id: category}, of a question file or of the benchmark's own 80."""
    if questions is not None:
        return {
            row["question_id"]: row["category"] for row in read_rows(questions, QUESTION_FIELDS, "MT-Bench questions")
        }
    return {number: CATEGORIES[(number - FIRST_QUESTION) // PER_CATEGORY] for number in QUESTIONS}


def score_mt_bench(path: str, questions: str | None) -> dict[str, Row]:
    """Scores of every model in a file of judgments.

    A question that was judged again counts with every rating, as in the benchmark; ratings of -1 are left out.

    Args:
        questions: a file with the questions that were judged; the benchmark's own 80 when None.

    Returns:
        {model: {score (mean over all ratings of both turns), turn_1, turn_2, categories {name: mean}, n_judgments,
        n_without_rating, judge}}; scores from 1 to 10.

    Raises:
        UserError: not judgments, a question unknown, or one that lacks a turn.
    """
    rows, categories = read_rows(path, JUDGMENT_FIELDS, "MT-Bench judgments"), known_categories(questions)
    scores = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        remedy = "judge the rest, or name the file of your own questions with --questions"
        for turn in (1, 2):
            refuse_gaps(f"{path}, {model}, turn {turn}", turns_of(own, turn), categories, remedy)
        judges = sorted({judge_name(row) for row in own})
        if len(judges) > 1:
            raise UserError(f"{path}: {model} was graded by {', '.join(judges)}; score each judge's file by itself")
        check_ratings(model, own)
        rated = [row for row in own if row["score"] != NO_RATING]
        if not rated:
            raise UserError(f"{path}: {model} has no judgment with a rating")
        scores[model] = {
            "score": mean(rated),
            "turn_1": mean([row for row in rated if row["turn"] == 1]),
            "turn_2": mean([row for row in rated if row["turn"] == 2]),
            "categories": {
                name: mean([row for row in rated if categories[row["question_id"]] == name])
                for name in dict.fromkeys(categories.values())
            },
            "n_judgments": len(rated),
            "n_without_rating": len(own) - len(rated),
            "judge": judges[0],
        }
    return scores


def turns_of(rows: list[Row], turn: int) -> list[int]:
    return [row["question_id"] for row in rows if row["turn"] == turn]


def mean(rows: list[Row]) -> float | None:
    return float(np.mean([row["score"] for row in rows])) if rows else None


def judge_name(row: Row) -> str:
    """The judge's model; the benchmark writes [model, name of the prompt]."""
    judge = row.get("judge", "unknown")
    return str(judge[0]) if isinstance(judge, list) else str(judge)


def check_ratings(model: str, rows: list[Row]) -> None:
    """Warn of ratings that are missing, doubled, or not what the judgment's text says."""
    if without := sum(row["score"] == NO_RATING for row in rows):
        warn(f"{model}: {without} judgments without a rating are left out")
    if again := len(rows) - len({(row["question_id"], row["turn"]) for row in rows}):
        warn(f"{model}: {again} judgments repeat a question and turn; every rating counts, as in the benchmark")
    if differing := sum(parse_rating(row["judgment"]) != row["score"] for row in rows):
        warn(f"{model}: in {differing} judgments the score is not the rating of the text; the score counts")
