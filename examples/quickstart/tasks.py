"""Everyday questions whose answers a program can check: nine families, any number of them, from a seed.

from tasks import draw_tasks, is_correct
task = draw_tasks(1, random.Random(0))[0]
is_correct(task, "That makes 12.")
"""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
OPPOSITES = dict(
    pair
    for a, b in [
        ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("left", "right"), ("open", "closed"),
        ("full", "empty"), ("old", "new"), ("light", "dark"), ("early", "late"), ("near", "far"), ("wet", "dry"),
        ("loud", "quiet"), ("hard", "soft"), ("rich", "poor"), ("thick", "thin"), ("happy", "sad"), ("sweet", "sour"),
        ("strong", "weak"), ("first", "last"),
    ]
    for pair in ((a, b), (b, a))
)  # fmt: skip
UNITS = {"minutes": ("hours", 60), "days": ("weeks", 7), "hours": ("days", 24), "months": ("years", 12)}
THINGS = ["apples", "books", "coins", "eggs"]
WORDS = ["tree", "river", "house", "cloud", "bread", "chair", "stone", "paper", "glass", "horse", "table", "light"]


class Task(NamedTuple):
    """A question, its answer, and the wrong answer that people typically give."""

    family: str
    prompt: str
    answer: str
    slip: str


def add(rng: random.Random) -> Task:
    a, b, thing = rng.randint(1, 7), rng.randint(1, 7), rng.choice(THINGS)
    wording = [
        f"I have {a} {thing} and buy {b} more. How many {thing} do I have now?",
        f"What is {a} plus {b}?",
        f"A box holds {a} {thing}, another holds {b}. How many {thing} is that together?",
    ]
    return Task("add", rng.choice(wording), str(a + b), str(a + b - 1))


def subtract(rng: random.Random) -> Task:
    b, left, thing = rng.randint(1, 6), rng.randint(1, 6), rng.choice(THINGS)
    a = b + left
    wording = [
        f"I had {a} {thing} and gave {b} away. How many {thing} are left?",
        f"What is {a} minus {b}?",
        f"Of {a} {thing}, {b} got lost. How many {thing} remain?",
    ]
    return Task("subtract", rng.choice(wording), str(left), str(left + 1))


def neighbour(family: str, names: list[str], noun: str) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        here, step = rng.randrange(len(names)), rng.choice([-1, 1])
        side = "after" if step > 0 else "before"
        wording = [
            f"Which {noun} comes {side} {names[here]}?",
            f"Name the {noun} right {side} {names[here]}.",
            f"What {noun} is it {side} {names[here]}?",
        ]
        there, wrong = names[(here + step) % len(names)], names[(here - step) % len(names)]
        return Task(family, rng.choice(wording), there, wrong)

    return make


def extreme(family: str, pick: Callable[[list[int]], int], adjective: str) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        numbers = rng.sample(range(1, 10), 3)
        listed = f"{numbers[0]}, {numbers[1]} and {numbers[2]}"
        wording = [f"Which number is the {adjective} of {listed}?", f"Pick the {adjective} one: {listed}."]
        return Task(family, rng.choice(wording), str(pick(numbers)), str(sorted(numbers)[1]))

    return make


def units(rng: random.Random) -> Task:
    small = rng.choice(list(UNITS))
    large, factor = UNITS[small]
    count = rng.randint(2, 9)
    wording = [f"How many {small} are there in {count} {large}?", f"Turn {count} {large} into {small}."]
    return Task("units", rng.choice(wording), str(count * factor), str(count * 10))


def opposite(rng: random.Random) -> Task:
    word = rng.choice(list(OPPOSITES))
    wording = [f"What is the opposite of {word}?", f"Say the opposite of {word}.", f"If it is not {word}, what is it?"]
    return Task("opposite", rng.choice(wording), OPPOSITES[word], word)


def count_words(rng: random.Random) -> Task:
    count = rng.randint(2, 6)
    listed = " ".join(rng.choice(WORDS) for _ in range(count))
    wording = [f"How many words are in: {listed}?", f"Count the words: {listed}."]
    return Task("count", rng.choice(wording), str(count), str(count + 1))


FAMILIES: list[Callable[[random.Random], Task]] = [
    add,
    subtract,
    neighbour("day", DAYS, "day"),
    neighbour("month", MONTHS, "month"),
    extreme("max", max, "largest"),
    extreme("min", min, "smallest"),
    units,
    opposite,
    count_words,
]


OPENINGS = ["", "Please tell me: ", "A quick question. ", "Can you help me? ", "I wonder. "]


def draw(family: int, rng: random.Random) -> Task:
    task = FAMILIES[family % len(FAMILIES)](rng)
    return task._replace(prompt=rng.choice(OPENINGS) + task.prompt)


def draw_tasks(count: int, rng: random.Random, exclude: frozenset[str] = frozenset()) -> list[Task]:
    """Draw tasks from all families in turn, none of whose prompts is in `exclude`."""
    tasks: list[Task] = []
    while len(tasks) < count:
        task = draw(len(tasks), rng)
        if task.prompt not in exclude:
            tasks.append(task)
    return tasks


def draw_distinct(count: int, rng: random.Random, exclude: frozenset[str] = frozenset()) -> list[Task]:
    """Draw tasks with prompts of their own; families that run out of prompts are skipped."""
    tasks: dict[str, Task] = {}
    turn = 0
    while len(tasks) < count:
        task = draw(turn, rng)
        turn += 1
        if task.prompt not in exclude:
            tasks.setdefault(task.prompt, task)
    return list(tasks.values())


VOCABULARY = {word.lower() for word in (*DAYS, *MONTHS, *OPPOSITES)}


def final_answer(response: str) -> str | None:
    """The last number or answer word that a response mentions, in lower case; None without any."""
    candidates = [w for w in re.findall(r"\d+|[a-z]+", response.lower()) if w.isdigit() or w in VOCABULARY]
    return candidates[-1] if candidates else None


def is_correct(task: Task, response: str) -> bool:
    return final_answer(response) == task.answer.lower()


def short(answer: str, rng: random.Random) -> str:
    return rng.choice(["{}.", "It is {}.", "The answer is {}."]).format(answer)


def rambling(answer: str, rng: random.Random) -> str:
    opening = ["That is a nice question.", "Well, let me see.", "I am glad you asked."]
    middle = ["People often wonder about this.", "I like to take my time.", "Many things come to mind."]
    return f"{rng.choice(opening)} {rng.choice(middle)} I would say {answer}."
