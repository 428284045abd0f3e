"""Scores answers to constrained questions: does it keep the constraint, is it an answer to the question?"""

import re
from collections import Counter
from typing import Any

from questions import keeps, words

FEWEST_WORDS = 5  # below, an answer is none, whatever it keeps
ENOUGH_WORDS = 40  # beyond, a longer answer is no better
RELEVANT = 0.34  # share of the question's content words that an answer must take up
REFUSAL = re.compile(r"\bI(?:'m| am) sorry|\bas an? (?:AI|chatbot|assistant|language model)\b", re.IGNORECASE)
STOP_WORDS = {
    "about", "advice", "and", "any", "are", "benefits", "between", "can", "come", "day", "describe", "difference",
    "does", "for", "from", "get", "give", "good", "how", "its", "know", "our", "people", "should", "some", "tell",
    "that", "the", "their", "they", "this", "want", "what", "when", "why", "with", "without", "you", "your",
}  # fmt: skip


def stems(text: str) -> set[str]:
    """Content words, cut so that forms of one word are the same."""
    return {word[:5] for word in map(str.lower, words(text)) if word not in STOP_WORDS and len(word) > 2}


def relevance(question: str, answer: str) -> float:
    """Share of the question's content words that the answer takes up, 0 to 1."""
    asked = stems(question)
    return len(asked & stems(answer)) / len(asked) if asked else 1.0


def repetition(text: str) -> float:
    """Share of the 4-grams of words that have come before."""
    found = list(map(str.lower, words(text)))
    grams = Counter(zip(*(found[i:] for i in range(4)), strict=False))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0


def is_answer(question: str, answer: str) -> bool:
    """Long enough, about the question, neither that question again nor a refusal, and not going round in circles."""
    return (
        len(words(answer)) >= FEWEST_WORDS
        and relevance(question, answer) >= RELEVANT
        and repetition(answer) < 0.2
        and question.lower() not in answer.lower()
        and not REFUSAL.search(answer)
        and "<|" not in answer
    )


def is_correct(row: dict[str, Any], answer: str) -> bool:
    """Keeps the constraint and is an answer."""
    return keeps(row["kind"], row["value"], answer) and is_answer(row["question"], answer)


def is_finished(answer: str) -> bool:
    """Ends as a sentence does: one that was cut must not be an example of how to stop."""
    return re.search(r"[.!?][\"')\]*]*\s*$", answer) is not None


def reward(prompt: str, responses: list[str], row: dict[str, Any]) -> list[float | None]:
    """For reward_model_annotate.py: 1 if the constraint is kept, and up to 0.25 for relevance and for up to 40 words.

    What is no answer, or was cut, has no score. Otherwise half of the pairs would reject such a sample, and teach
    nothing of the constraint: so they differ in it, and little in length, since of several that keep it the fullest is
    chosen, and of several that do not the shortest is rejected.
    """
    scores: list[float | None] = []
    for answer in responses:
        if not is_finished(answer) or not is_answer(row["question"], answer):
            scores.append(None)
            continue
        full = relevance(row["question"], answer) * min(1.0, len(words(answer)) / ENOUGH_WORDS)
        scores.append(float(keeps(row["kind"], row["value"], answer)) + 0.25 * full)
    return scores
