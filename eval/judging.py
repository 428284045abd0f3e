"""What the judge of Arena-Hard and MT-Bench is asked, and the official judgment rows made of its replies."""

import string
import time
from dataclasses import dataclass
from typing import Any

import arena_hard
import mt_bench
from questions import Question
from records import Row, read_rows, refuse_gaps, refuse_repeats
from simpo.config import read_yaml
from simpo.console import UserError

# Asked when a reply holds no verdict; the benchmark asks once more in a similar way.
AGAIN = "Please go on with your judgment, and end it with one of the verdict labels."
PROMPT_FIELDS = {"name": str, "type": str, "system_prompt": str, "prompt_template": str}
REMEDY = "generate the rest, or name the matching files with --questions and --answers"


@dataclass(frozen=True)
class Task:
    """One judgment to get.

    Attributes:
        part: Arena-Hard: the game (1: the baseline is A; 2: the model is A). MT-Bench: the turn.
        prompt_name: MT-Bench's name of the judge prompt.
        attempts: how often to ask for a verdict, at most.
    """

    question_id: str | int
    part: int
    system: str
    user: str
    attempts: int
    pattern: str
    prompt_name: str = ""

    @property
    def key(self) -> tuple[str | int, int]:
        return self.question_id, self.part

    def messages(self, replies: list[Row]) -> list[dict[str, str]]:
        """The conversation so far; an earlier reply without a verdict is followed by a request for one."""
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]
        for reply in replies:
            messages.append({"role": "assistant", "content": reply["content"]})
            messages.append({"role": "user", "content": AGAIN})
        return messages

    def is_done(self, replies: list[Row]) -> bool:
        found = any(arena_hard.has_verdict(reply["content"], self.pattern) for reply in replies)
        return bool(replies) and (found or len(replies) >= self.attempts)


@dataclass(frozen=True)
class JudgeSettings:
    """How the judge decodes, and what it reads."""

    temperature: float
    max_tokens: int
    prompts: dict[str, Any]


def read_answers(
    path: str, questions: list[Question], benchmark: str, what: str, more: bool = False
) -> tuple[str, dict[Any, list[str]]]:
    """Read a model's answer file.

    Args:
        more: whether it may answer questions that are not asked.

    Returns:
        The model's name, and {question_id: the text of each turn}.

    Raises:
        UserError: another benchmark's file, several models, a question answered twice or not at all.
    """
    rows = read_rows(path, {"question_id": (str, int), "model_id": str, "choices": list}, what)
    turns: dict[Any, list[str]] = {}
    for number, row in enumerate(rows):
        try:
            texts = row["choices"][0]["turns"]
            if benchmark == "arenahard":
                texts = [turn["content"] for turn in texts]
        except (LookupError, TypeError) as error:
            raise UserError(f"{path}, row {number}: choices[0].turns are not those of {what}") from error
        if len(texts) != len(questions[0].turns) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}, row {number}: must have {len(questions[0].turns)} turn(s) of text, as {what} do")
        turns[row["question_id"]] = texts
    refuse_repeats(path, [row["question_id"] for row in rows])
    refuse_gaps(path, turns, [question.key for question in questions], REMEDY, more)
    names = sorted({row["model_id"] for row in rows})
    if len(names) > 1:
        raise UserError(f"{path}: holds answers of several models ({', '.join(names)}); judge each model's own file")
    return names[0], turns


def fill(template: str, path: str, **values: str) -> str:
    """Put values into a judge prompt's {places}.

    Raises:
        UserError: the prompt has a place that this benchmark does not fill.
    """
    places = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if strange := sorted(places - values.keys()):
        raise UserError(f"judge_prompts: {path}: has a place {{{strange[0]}}} (known: {', '.join(values)})")
    return template.format(**values)


def read_arena_hard_prompts(path: str) -> JudgeSettings:
    """The benchmark's own judge_config.yaml.

    Raises:
        UserError: no system_prompt or prompt_template in it.
    """
    content = read_yaml(path)
    for key in ("system_prompt", "prompt_template"):
        if not content.get(key):
            raise UserError(f"judge_prompts: {path} has no {key}; name the benchmark's own judge_config.yaml")
    return JudgeSettings(
        temperature=content.get("temperature", 0),
        max_tokens=content.get("max_tokens", 4096),
        prompts={
            "system": content["system_prompt"],
            "user": "\n".join(content["prompt_template"]),
            "pattern": content.get("regex_pattern", arena_hard.VERDICT),
            "attempts": content.get("number_of_judgment_attempts", 2),
        },
    )


def arena_hard_tasks(
    path: str, settings: JudgeSettings, questions: list[Question], answers: Row, baseline: Row
) -> list[Task]:
    """Two games per question: the baseline as A, then the model as A."""
    prompts, tasks = settings.prompts, []
    for question in questions:
        own, other = answers[question.key][0], baseline[question.key][0]
        for game, (first, second) in enumerate([(other, own), (own, other)], start=1):
            user = fill(prompts["user"], path, question_1=question.turns[0], answer_1=first, answer_2=second)
            tasks.append(Task(question.key, game, prompts["system"], user, prompts["attempts"], prompts["pattern"]))
    return tasks


def arena_hard_rows(judge: str, model: str, tasks: list[Task], replies: dict[Any, list[Row]]) -> list[Row]:
    """{question_id, model, judge, games: [{user_prompt, judgment, score}, ...]}, score None without a verdict."""
    rows: dict[Any, Row] = {}
    for task in tasks:
        row = rows.setdefault(
            task.question_id, {"question_id": task.question_id, "model": model, "judge": judge, "games": []}
        )
        judgment = "\n".join(reply["content"] for reply in replies[task.key])
        score = arena_hard.parse_verdict(judgment, task.pattern)
        row["games"].append({"user_prompt": task.user, "judgment": judgment, "score": score})
    return list(rows.values())


def read_mt_bench_prompts(path: str) -> JudgeSettings:
    """The benchmark's own judge_prompts.jsonl.

    Raises:
        UserError: one of the four prompts of single-answer grading is missing.
    """
    rows = {row["name"]: row for row in read_rows(path, PROMPT_FIELDS, "MT-Bench judge prompts")}
    names = [f"single-{kind}v1{turn}" for kind in ("", "math-") for turn in ("", "-multi-turn")]
    if missing := [name for name in names if name not in rows]:
        raise UserError(f"judge_prompts: {path} has no prompt {missing[0]}; name the benchmark's own file")
    return JudgeSettings(temperature=0, max_tokens=2048, prompts={name: rows[name] for name in names})


def mt_bench_tasks(
    path: str, settings: JudgeSettings, questions: list[Question], answers: Row, references: Row
) -> list[Task]:
    """Turn 1 and turn 2 of every question; math, reasoning and coding with the reference answers."""
    tasks = []
    for question in questions:
        own, with_reference = answers[question.key], question.category in mt_bench.WITH_REFERENCE
        values = {f"question_{n}": text for n, text in enumerate(question.turns, start=1)}
        values |= {f"answer_{n}": text for n, text in enumerate(own, start=1)}
        if with_reference:
            values |= {f"ref_answer_{n}": text for n, text in enumerate(references[question.key], start=1)}
        values |= {"question": question.turns[0], "answer": own[0]}
        for turn in (1, 2):
            name = f"single-{'math-' if with_reference else ''}v1{'-multi-turn' if turn == 2 else ''}"
            prompt = settings.prompts[name]
            user = fill(prompt["prompt_template"], path, **values)
            tasks.append(Task(question.key, turn, prompt["system_prompt"], user, 1, r"\[", name))
    return tasks


def mt_bench_rows(judge: str, model: str, tasks: list[Task], replies: dict[Any, list[Row]]) -> list[Row]:
    """{question_id, model, judge: [judge, prompt], user_prompt, judgment, score, turn, tstamp}; score -1: no rating."""
    return [
        {
            "question_id": task.question_id,
            "model": model,
            "judge": [judge, task.prompt_name],
            "user_prompt": task.user,
            "judgment": replies[task.key][-1]["content"],
            "score": mt_bench.parse_rating(replies[task.key][-1]["content"]),
            "turn": task.part,
            "tstamp": replies[task.key][-1].get("time", time.time()),
        }
        for task in tasks
    ]
