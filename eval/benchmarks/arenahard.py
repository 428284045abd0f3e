"""Arena-Hard: 500 questions, two games each against one baseline's answers, the sides swapped.

The score is a win rate with a bootstrap interval (battles.py).

Two layouts of files are read. v0.1's: {question_id, turns: [{content}]}, answers {question_id, model_id, choices}, a
judge_config.yaml with system_prompt and a list as prompt_template. Today's: {uid, category, prompt}, answers {uid,
model, messages}, a YAML with one text {QUESTION} ... {ANSWER_A} ... {ANSWER_B}. Answers and judgments are written in
the layout of the questions. Questions of v2.0 (other categories than arena-hard-v0.1) are scored by v2.0's own rule.
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from battles import V01, VERDICT, Battle, battles_of_judgments, battles_of_list, category_of, v01_numbers, v2_numbers
from benchmarks.base import Benchmark, answer_id, notes
from decoding import Settings, checked, refuse_unknown
from judge_prompts import fill, messages
from parts import JudgeFiles, Judging, Question, ScoreFiles
from published import Point
from records import Row, find_file, kind_of, read_items, read_rows, refuse_gaps
from simpo.config import read_yaml
from simpo.config.values import check_type
from simpo.console import UserError, warn
from simpo.files import read_text
from simpo.judge.tasks import Outcome, Reading, Task

JUDGE, QUESTIONS = "gpt-4-1106-preview", 500
# Asked when a reply holds no verdict; the benchmark asks once more in a similar way.
AGAIN = "Please go on with your judgment, and end it with one of the verdict labels."
TODAY = {"uid": str, "prompt": str}


class ArenaHard(Benchmark):
    title = "Arena-Hard"
    hub = ("lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v0.1/question.jsonl")
    question_fields = {"question_id": str, "turns": list}
    decoding = {"temperature": 0.0, "max_tokens": 4096}
    needs = ("references", "judge_prompts")
    columns = [
        ("win rate", "win_rate", 2),
        ("low", "ci_low", 2),
        ("high", "ci_high", 2),
        ("length", "avg_length", 0),
    ]
    published = {"win_rate": "arenahard_wr", "avg_length": "arenahard_length"}
    asks_server = True
    score_options = ("questions", "answers", "reference_data")

    def question_rows(self, path: str) -> list[Row]:
        return either_layout(path, TODAY, self.question_fields, "Arena-Hard questions")

    def question(self, row: Row) -> Question:
        if "prompt" in row:
            return Question(row["uid"], [row["prompt"]], row)
        return Question(row["question_id"], [t.get("content") if isinstance(t, dict) else t for t in row["turns"]], row)

    def has_config(self, path: str) -> bool:
        return Path(path).is_dir() or Path(path).name in ("gen_answer_config.yaml", "api_config.yaml")

    def read_settings(self, path: str) -> Settings:
        """The folder with gen_answer_config.yaml and api_config.yaml."""
        folder = Path(path).parent if Path(path).is_file() else Path(path)
        answers = read_yaml(str(folder / "gen_answer_config.yaml"))
        sampling = {"temperature", "max_tokens", "stop_token_ids"}
        known = sampling | {"name", "bench_name", "num_choices", "model_list"}
        refuse_unknown(str(folder), answers, known)
        if answers.get("num_choices", 1) != 1:
            raise UserError(f"{folder}: num_choices: Arena-Hard v0.1 judges one answer, found {answers['num_choices']}")
        endpoints = read_yaml(str(folder / "api_config.yaml"))
        models = answers.get("model_list") or list(endpoints)
        one = models[0] if isinstance(models, list) and len(models) == 1 else None
        if not isinstance(one, str) or not isinstance(endpoints.get(one), dict):
            raise UserError(f"{folder}: model_list must name one model of api_config.yaml, found {models}")
        chat_template = endpoints[one].get("chat_template")
        if chat_template is not None and not (folder / str(chat_template)).is_file():
            raise UserError(f"{folder}: chat_template: there is no file {folder / str(chat_template)}")
        return Settings(
            name=one,
            decoding=checked(str(folder), {key: answers[key] for key in sampling if key in answers}),
            chat_template=chat_template and str(folder / chat_template),
        )

    # --- answer files

    def token_counter(self, tokenizer: Any) -> tuple[str, Callable[[str], int]]:
        """The benchmark's way of counting: GPT-3.5's encoding. Without network its table may be missing; the model's
        own tokenizer then counts, with a warning."""
        import requests
        import tiktoken

        try:
            encoding = tiktoken.encoding_for_model("gpt-3.5-turbo")
            return "gpt-3.5-turbo (tiktoken)", lambda text: len(encoding.encode(text, disallowed_special=()))
        except requests.RequestException:
            warn("tiktoken cannot download GPT-3.5's encoding: token_len is counted with the model's own tokenizer")
            return "the model's own", lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_row(self, name: str, question: Question, texts: list[str], time: float, count: Any) -> Row:
        if "prompt" in question.row:
            said = [{"role": "user", "content": question.turns[0]}]
            said.append({"role": "assistant", "content": {"answer": texts[0]}})
            row = {"uid": question.key, "ans_id": answer_id(name, question, texts), "model": name, "messages": said}
            return row | {"tstamp": time, "metadata": {"token_len": count(texts[0])}}
        turns = [{"content": text, "token_len": count(text)} for text in texts]
        row = super().answer_row(name, question, texts, time, count)
        return row | {"choices": [{"index": 0, "turns": turns}]}

    def answer_rows(self, path: str) -> list[Row]:
        today = {"uid": str, "model": str, "messages": list}
        return either_layout(path, today, self.answer_fields | {"question_id": str}, "Arena-Hard answers")

    def answer(self, row: Row) -> tuple[str, str, list[str]]:
        if "messages" in row:
            content = row["messages"][-1]["content"]
            return row["uid"], row["model"], [content["answer"] if isinstance(content, dict) else content]
        return row["question_id"], row["model_id"], [turn["content"] for turn in row["choices"][0]["turns"]]

    # --- judging

    def judging(self, files: JudgeFiles) -> Judging:
        """Two games per question: the baseline as A, then the model as A."""
        questions, prompts = self.read_questions(files.questions), read_prompts(files.judge_prompts)
        model, answers = self.read_answers(files.answers, questions, files.thinking)
        baseline, others = self.read_answers(files.references, questions, files.thinking, more=True)
        tasks, rows_of = [], {}
        for question in questions:
            own, other = answers[question.key][0], others[question.key][0]
            for game, (first, second) in enumerate([(other, own), (own, other)], start=1):
                user = fill_game(prompts, files.judge_prompts, question.turns[0], first, second)
                tasks.append(Task(question.key, game, messages(prompts.system, user)))
            rows_of[question.key] = question.row

        def rows(outcomes: dict[Any, Outcome], judge: str) -> list[Row]:
            games = zip(tasks[::2], tasks[1::2], strict=True)
            return [judgment(model, baseline, judge, rows_of[g[0].question_id], g, outcomes) for g in games]

        reading = Reading(prompts.patterns, prompts.rule, prompts.attempts, AGAIN)
        return Judging(model, tasks, prompts.parameters, rows, reading)

    # --- score

    def score(self, files: ScoreFiles) -> dict[str, Row]:
        """Scores of every model in a file of judgments or battles.

        Returns:
            {model: {win_rate, ci_low, ci_high (percent), n_questions, n_battles (weighted), judge (if known),
            avg_length (tokens, if known)}}; of v2.0 one for each model and category.

        Raises:
            UserError: see `read_battles`; or the answers are of other models.
        """
        if files.reference_data:
            find_file(files.reference_data, "leaderboard*.csv", needed=False)
        battles, judges = read_battles(self, files.judgments, files.questions)
        lengths = self.answer_lengths(files.answers)
        if files.answers and not lengths.keys() & {battle.model for battle in battles}:
            found = ", ".join(dict.fromkeys(battle.model for battle in battles))
            raise UserError(f"answers: {files.answers} holds answers of {', '.join(lengths)}, not of {found}")
        scores = {}
        for category in dict.fromkeys(battle.category for battle in battles):
            own = [battle for battle in battles if battle.category == category]
            numbers = v01_numbers(own) if category == V01 else v2_numbers(own)
            if category != V01:
                warn(f"{category} is of Arena-Hard v2.0: scored by its rule, not comparable with v0.1's published rows")
            for model, row in numbers.items():
                name = model if category == V01 else f"{model} ({category})"
                with_verdict = {battle.question_id for battle in own if battle.model == model}
                scores[name] = row | {"n_questions": len(with_verdict), "judge": ", ".join(judges) or None}
                scores[name]["avg_length"] = lengths.get(model)
        return scores

    def answer_lengths(self, path: str | None) -> dict[str, float]:
        """{model: mean answer length in tokens} of a file of answers that carry token_len."""
        lengths: dict[str, list[int]] = {}
        for number, row in enumerate(self.answer_rows(path) if path else []):
            try:
                of_today = "messages" in row
                length = row["metadata"]["token_len"] if of_today else row["choices"][0]["turns"][0]["token_len"]
                lengths.setdefault(row["model" if of_today else "model_id"], []).append(int(length))
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(f"answers: {path}, row {number}: has no token_len (an answer's length)") from error
        return {model: sum(values) / len(values) for model, values in lengths.items()}

    def published_points(self, files: ScoreFiles) -> list[Point]:
        """With those of the benchmark's leaderboard_*.csv in the folder of reference data, if there is one."""
        points, folder = super().published_points(files), files.reference_data
        path = find_file(folder, "leaderboard*.csv", needed=False) if folder else None
        if path is None:
            return points
        try:
            lines = csv.DictReader(read_text(path, "reference_data").splitlines())
            return points + [Point(line["model"], float(line["avg_tokens"]), float(line["score"])) for line in lines]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"reference_data: {path} is no leaderboard of Arena-Hard: {error}") from error


def either_layout(path: str, today: dict[str, Any], v01: dict[str, Any], what: str) -> list[Row]:
    """The rows of a file in today's layout, or in v0.1's, by its first row."""
    items = read_items(Path(path), what)
    is_today = bool(items) and isinstance(items[0][1], dict) and "uid" in items[0][1]
    return read_rows(path, today if is_today else v01, what)


class Prompts(NamedTuple):
    """What the judge is asked, of a judge configuration."""

    system: str
    user: str
    places: tuple[str, str, str]
    """Names of the places of question, answer A and answer B."""
    parameters: Row
    patterns: tuple[str, ...]
    rule: str
    attempts: int


def read_prompts(path: str) -> Prompts:
    """The benchmark's own judge_config.yaml, or the YAML of today.

    Raises:
        UserError: no system_prompt or prompt_template in it, or a value of another type.
    """
    content = read_yaml(path)
    today = "{QUESTION}" in str(content.get("prompt_template"))
    if today and not content.get("system_prompt"):
        raise UserError(
            f"judge_prompts: {path} is of today's Arena-Hard, whose system prompts are in the tool's own code: add "
            "it as system_prompt (that of v0.1's questions is in v0.1's judge_config.yaml)"
        )
    for key in ("system_prompt", "prompt_template"):
        if not content.get(key):
            raise UserError(f"judge_prompts: {path} has no {key}; name the benchmark's own judge_config.yaml")
    hints = {
        "system_prompt": str,
        "prompt_template": str if isinstance(content["prompt_template"], str) else list[str],
        "temperature": float | None,
        "max_tokens": int,
        "regex_pattern": str,
        "regex_patterns": list[str],
        "number_of_judgment_attempts": int,
    }
    values = {"temperature": 0.0, "max_tokens": 4096, "number_of_judgment_attempts": 1 if today else 2}
    values |= {key: check_type(key, content[key], hint, path) for key, hint in hints.items() if key in content}
    if values["number_of_judgment_attempts"] < 1 or values["max_tokens"] < 1:
        raise UserError(f"judge_prompts: {path}: number_of_judgment_attempts and max_tokens must be at least 1")
    patterns = values.get("regex_patterns") or [values.get("regex_pattern", VERDICT)]
    return Prompts(
        system=values["system_prompt"],
        user=template if isinstance(template := values["prompt_template"], str) else "\n".join(template),
        places=("QUESTION", "ANSWER_A", "ANSWER_B") if today else ("question_1", "answer_1", "answer_2"),
        parameters={key: values[key] for key in ("temperature", "max_tokens")},
        patterns=tuple(check_pattern(path, pattern) for pattern in patterns),
        rule="last" if today else "all agree",
        attempts=values["number_of_judgment_attempts"],
    )


def check_pattern(path: str, pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"judge_prompts: {path}: the pattern {pattern!r} is not valid: {error}") from error
    if groups != 1:
        raise UserError(f"judge_prompts: {path}: the pattern {pattern!r} must have one group, the verdict")
    return pattern


def fill_game(prompts: Prompts, path: str, *texts: str) -> str:
    return fill(prompts.user, path, **dict(zip(prompts.places, texts, strict=True)))


def judgment(
    model: str, baseline: str, judge: str, question: Row, games: tuple[Task, Task], outcomes: dict[Any, Outcome]
) -> Row:
    """The official row of one question: v0.1's {question_id, model, judge, games: [{user_prompt, judgment, score}]},
    or today's {uid, category, judge, model, baseline, games: [{score, judgment: {answer}, prompt}]}; score None without
    a verdict."""
    found = [outcomes[task.key] for task in games]
    if "prompt" in question:
        row = {"uid": question["uid"], "category": category_of(question), "judge": judge, "model": model}
        row["baseline"] = baseline
        row["games"] = [
            {"score": o.verdict, "judgment": {"answer": o.judgment}, "prompt": task.messages} | notes(o)
            for task, o in zip(games, found, strict=True)
        ]
        return row
    row = {"question_id": games[0].question_id, "model": model, "judge": judge}
    row["games"] = [
        {"user_prompt": task.messages[-1]["content"], "judgment": o.judgment, "score": o.verdict} | notes(o)
        for task, o in zip(games, found, strict=True)
    ]
    return row


def read_battles(benchmark: ArenaHard, path: str, questions: str | None) -> tuple[list[Battle], list[str]]:
    """Read judgments, or a list of battles.

    Args:
        questions: a file with the questions that must all be judged; when None, gaps are only warned of.

    Returns:
        The battles in the file's order, each as often as it counts, and the judges' names.

    Raises:
        UserError: another kind of file, a row out of form, a question missing or judged twice.
    """
    today = {"uid": str, "model": str, "games": list}
    rows = either_layout(path, today, {"question_id": str}, "Arena-Hard judgments or battles")
    if kind_of(rows[0]) == "Arena-Hard battles":
        battles, judges = battles_of_list(path), []
        judged = [(battle.model, battle.category, battle.question_id) for battle in battles]
    else:
        battles, judges = battles_of_judgments(path, today if "uid" in rows[0] else None)
        judged = [(str(row["model"]), category_of(row), row.get("uid") or row["question_id"]) for row in rows]
    if not battles:
        raise UserError(f"{path}: holds no battle with a verdict")
    asked = benchmark.read_questions(questions) if questions is not None else []
    for model, category in dict.fromkeys((model, category) for model, category, _ in judged):
        own = [key for *group, key in judged if group == [model, category]]
        if questions is not None:
            expected = [question.key for question in asked if category_of(question.row) == category]
            refuse_gaps(path, own, expected, f"judge the rest of {model}'s answers")
        elif category == V01 and len(set(own)) < QUESTIONS:
            warn(f"{model}: {len(set(own))} of Arena-Hard's {QUESTIONS} questions; published rows are over all")
    if others := sorted(set(judges) - {JUDGE}):
        warn(f"judged by {', '.join(others)}; the published win rates are {JUDGE}'s")
    return battles, judges
