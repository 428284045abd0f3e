"""MT-Bench: 80 questions of two turns in eight categories; a judge rates each turn from 1 to 10.

Answers, reference answers, judge prompts and judgments are FastChat's files. The published ratings are the first
[[number]] of a reply; of a judge that thinks, the last one after its thoughts. FastChat's reference answers are
GPT-4's; SimPO's numbers were graded with 30 of gpt-4-1106-preview, which --references names by path.
"""

from typing import Any

import numpy as np

from benchmarks.base import Benchmark, notes
from decoding import Settings, checked, checked_engine, refuse_unknown
from judge_prompts import fill, messages
from parts import JudgeFiles, Judging, Question, ScoreFiles
from records import Row, read_rows, refuse_gaps
from simpo.chat.thinking import after_thinking
from simpo.config import read_yaml
from simpo.console import UserError, say, warn
from simpo.judge.tasks import RULES, Outcome, Reading, Task, find_labels

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_QUESTION, PER_CATEGORY = 81, 10
QUESTIONS = range(FIRST_QUESTION, FIRST_QUESTION + PER_CATEGORY * len(CATEGORIES))
# The benchmark's temperatures; a category that it does not know gets 0.7, as there.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURES |= {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
WITH_REFERENCE = ("math", "reasoning", "coding")
PATTERNS = (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]")
NO_RATING, NO_REPLY = -1, "$ERROR$"
JUDGMENT_FIELDS = {"question_id": int, "model": str, "turn": int, "judgment": str, "score": (int, float)}
PROMPT_FIELDS = {"name": str, "type": str, "system_prompt": str, "prompt_template": str}
PROMPTS = [f"single-{kind}v1{turn}" for kind in ("", "math-") for turn in ("", "-multi-turn")]


class MTBench(Benchmark):
    title = "MT-Bench"
    hub = ("lmsys/mt-bench", "space", "data/mt_bench/question.jsonl")
    turns = 2
    question_fields = {"question_id": int, "category": str, "turns": list}
    decoding = {"temperature": None, "max_tokens": 1024}
    needs = ("references", "judge_prompts")
    judge_parameters = {"temperature": 0, "max_tokens": 2048}
    columns = [("score", "score", 2), ("turn 1", "turn_1", 2), ("turn 2", "turn_2", 2)]

    def temperature_of(self, question: Question) -> float:
        return TEMPERATURES.get(question.row["category"], 0.7)

    def has_config(self, path: str) -> bool:
        return path.endswith((".yaml", ".yml")) and "max_new_token" in read_yaml(path)

    def read_settings(self, path: str) -> Settings:
        """A YAML with gen_model_answer's flags."""
        content = read_yaml(path)
        refuse_unknown(path, content, {"model_path", "model_id", "max_new_token", "dtype", "chat_template"})
        if "max_new_token" not in content:
            raise UserError(f"{path}: has no max_new_token; is it an MT-Bench configuration?")
        return Settings(
            name=content.get("model_id"),
            decoding=checked(path, {"max_tokens": content["max_new_token"]}),
            engine=checked_engine(path, {"dtype": content["dtype"]} if "dtype" in content else {}),
            chat_template=content.get("chat_template"),
        )

    # --- judging

    def judging(self, files: JudgeFiles) -> Judging:
        """Turn 1 and turn 2 of every question; math, reasoning and coding with the reference answers."""
        questions = self.read_questions(files.questions)
        prompts = read_prompts(files.judge_prompts)
        model, answers = self.read_answers(files.answers, questions, files.thinking)
        needing, references = [q for q in questions if q.row["category"] in WITH_REFERENCE], {}
        if needing:
            name, references = self.read_answers(files.references, needing, files.thinking, more=True)
            say(f"reference answers by {name}")
        tasks = [
            Task(question.key, turn, *conversation(files.judge_prompts, prompts, question, turn, answers, references))
            for question in questions
            for turn in (1, 2)
        ]

        def rows(outcomes: dict[Any, Outcome], judge: str) -> list[Row]:
            return [self.judgment_row(model, judge, task, outcomes[task.key]) for task in tasks]

        return Judging(model, tasks, self.judge_parameters, rows, Reading(PATTERNS))

    def judgment_row(self, model: str, judge: str, task: Task, outcome: Outcome) -> Row:
        return {
            "question_id": task.question_id,
            "model": model,
            "judge": [judge, task.label],
            "user_prompt": task.messages[-1]["content"],
            "judgment": outcome.judgment or NO_REPLY,
            "score": NO_RATING if outcome.verdict is None else float(outcome.verdict),
            "turn": task.part,
            "tstamp": outcome.replies[-1]["time"],
        } | notes(outcome)

    # --- score

    def score(self, files: ScoreFiles) -> dict[str, Row]:
        """Scores of every model in a file of judgments.

        A question that was judged again counts with every rating, as in the benchmark; ratings of -1 are left out.

        Returns:
            {model: {score (mean over all ratings of both turns), turn_1, turn_2, categories {name: mean}, n_judgments,
            n_without_rating, judge}}; scores from 1 to 10.

        Raises:
            UserError: not judgments, a question unknown, or one that lacks a turn.
        """
        path = files.judgments
        rows, categories = (
            read_rows(path, JUDGMENT_FIELDS, "MT-Bench judgments"),
            self.known_categories(files.questions),
        )
        scores = {}
        for model in dict.fromkeys(row["model"] for row in rows):
            own = [row for row in rows if row["model"] == model]
            remedy = "judge the rest, or name the file of your own questions with --questions"
            for turn in (1, 2):
                found = [row["question_id"] for row in own if row["turn"] == turn]
                refuse_gaps(f"{path}, {model}, turn {turn}", found, categories, remedy)
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

    def known_categories(self, questions: str | None) -> dict[int, str]:
        """{question_id: category}, of a question file or of the benchmark's own 80."""
        if questions is not None:
            return {row["question_id"]: row["category"] for row in self.question_rows(questions)}
        return {number: CATEGORIES[(number - FIRST_QUESTION) // PER_CATEGORY] for number in QUESTIONS}

    def bars(self, score: Row) -> dict[str, float | None]:
        return score["categories"] | {"turn 1": score["turn_1"], "turn 2": score["turn_2"], "all": score["score"]}


def read_prompts(path: str) -> dict[str, Row]:
    """The benchmark's own judge_prompts.jsonl, by name.

    Raises:
        UserError: one of the four prompts of single-answer grading is missing.
    """
    rows = {row["name"]: row for row in read_rows(path, PROMPT_FIELDS, "MT-Bench judge prompts")}
    if missing := [name for name in PROMPTS if name not in rows]:
        raise UserError(f"judge_prompts: {path} has no prompt {missing[0]}; name the benchmark's own file")
    return {name: rows[name] for name in PROMPTS}


def conversation(
    path: str, prompts: dict[str, Row], question: Question, turn: int, answers: Row, references: Row
) -> tuple[list[dict[str, str]], str]:
    """The judge's messages about one turn, and the name of their prompt."""
    own, with_reference = answers[question.key], question.row["category"] in WITH_REFERENCE
    values = {f"question_{n}": text for n, text in enumerate(question.turns, start=1)}
    values |= {f"answer_{n}": text for n, text in enumerate(own, start=1)}
    if with_reference:
        values |= {f"ref_answer_{n}": text for n, text in enumerate(references[question.key], start=1)}
    values |= {"question": question.turns[0], "answer": own[0]}
    name = f"single-{'math-' if with_reference else ''}v1{'-multi-turn' if turn == 2 else ''}"
    user = fill(prompts[name]["prompt_template"], path, **values)
    return messages(prompts[name]["system_prompt"], user), name


def parse_rating(text: str, rule: str = "first") -> float:
    """The first [[number]] of a judge's reply (or by another of RULES), else [number], else -1."""
    labels = find_labels(after_thinking(text) if "thinking" in rule else text, PATTERNS)
    return float(RULES[rule](labels)) if labels else NO_RATING


def mean(rows: list[Row]) -> float | None:
    return float(np.mean([row["score"] for row in rows])) if rows else None


def judge_name(row: Row) -> str:
    """The judge's model; the benchmark writes [model, name of the prompt]."""
    judge = row.get("judge", "unknown")
    return str(judge[0]) if isinstance(judge, list) and judge else str(judge)


def check_ratings(model: str, rows: list[Row]) -> None:
    """Warn of ratings that are missing, doubled, or not what the judgment's text says."""
    if without := sum(row["score"] == NO_RATING for row in rows):
        warn(f"{model}: {without} judgments without a rating are left out")
    if again := len(rows) - len({(row["question_id"], row["turn"]) for row in rows}):
        warn(f"{model}: {again} judgments repeat a question and turn; every rating counts, as in the benchmark")
    read = [parse_rating(row["judgment"], row["rule"] if row.get("rule") in RULES else "first") for row in rows]
    if differing := sum(rating != row["score"] for rating, row in zip(read, rows, strict=True)):
        warn(f"{model}: in {differing} judgments the score is not the rating of the text; the score counts")
