"""What a benchmark declares, with the defaults that FastChat's formats give: see `Benchmark`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from decoding import Decoding, Settings
from parts import AnswerFiles, JudgeFiles, Judging, Question, ScoreFiles
from published import Point, published_points, published_rows
from records import Row, read_rows, refuse_gaps, refuse_repeats
from simpo.console import UserError
from simpo.files import write_rows
from simpo.judge.tasks import Outcome, Reading, Task
from thoughts import take_off

REMEDY = "generate the rest, or name the matching files with --questions and --answers"


class Benchmark:
    """One benchmark. A subclass in a file of its own declares what differs from the defaults, which are FastChat's.

    Attributes:
        title: as printed.
        hub: (repository, its type, file) of the questions; None: only from --questions.
        turns: user turns of a question.
        question_fields, answer_fields: fields of the rows, and their types.
        decoding: defaults of `Decoding`; temperature None: `temperature_of` each question.
        needs: what judge.py must be given beside the answers.
        judge_parameters: of the judge's request.
        patterns, rule: how a verdict is read (see `Reading`).
        columns: (heading, key of a score, decimals) of the printed table, the first decides its order.
        published: {key of a score: column of published_results.csv}.
        length_unit: what avg_length counts.
        asks_server: whether the official tool asks a server, which applies the chat template.
        score_options: options of score.py that mean something here.
    """

    title = ""
    hub: tuple[str, str, str] | None = None
    turns = 1
    question_fields: dict[str, Any] = {"question_id": (str, int), "turns": list}
    answer_fields: dict[str, Any] = {"question_id": (str, int), "model_id": str, "choices": list}
    decoding: dict[str, Any] = {"temperature": 0.0, "max_tokens": 2048}
    needs: tuple[str, ...] = ()
    judge_parameters: dict[str, Any] = {"temperature": 0, "max_tokens": 2048}
    patterns: tuple[str, ...] = ()
    rule = "first"
    columns: list[tuple[str, str, int]] = [("score", "score", 2)]
    published: dict[str, str] = {}
    length_unit = "tokens"
    asks_server = False
    score_options: tuple[str, ...] = ("questions",)

    def __init__(self, name: str):
        self.name = name

    # --- questions

    def question(self, row: Row) -> Question:
        """A row of the question file."""
        return Question(row["question_id"], row["turns"], row)

    def read_questions(self, path: str | None) -> list[Question]:
        """Read the questions, in the file's order.

        Args:
            path: local .json or .jsonl file (also .gz), or None for the benchmark's own file on the hub.

        Raises:
            UserError: the file is of another benchmark, a question is empty, repeated or has the wrong number of turns.
        """
        path, what, questions = path or self.download(), f"{self.title} questions", []
        for number, row in enumerate(self.question_rows(path)):
            question = self.question(row)
            if len(question.turns) != self.turns or not all(isinstance(t, str) and t.strip() for t in question.turns):
                raise UserError(
                    f"{path}, row {number}: {what} have {self.turns} turn(s) of text, found {len(question.turns)}"
                    f"{' with an empty one' if len(question.turns) == self.turns else ''}; is this another "
                    "benchmark's file?"
                )
            questions.append(question)
        refuse_repeats(path, [question.key for question in questions])
        return questions

    def question_rows(self, path: str) -> list[Row]:
        return read_rows(path, self.question_fields, f"{self.title} questions")

    def download(self) -> str:
        """Fetch the question file from the hub, or find it in the cache.

        Raises:
            UserError: there is none, or the hub cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        if self.hub is None:
            raise UserError(f"questions: {self.title} has none on the hub; name a local file with --questions")
        repository, kind, file = self.hub
        try:
            return hf_hub_download(repo_id=repository, repo_type=kind, filename=file)
        except (OSError, HfHubHTTPError) as error:
            raise UserError(
                f"questions: {file} of {repository} cannot be downloaded ({type(error).__name__}); name a local file "
                "with --questions"
            ) from error

    # --- decoding

    def has_config(self, path: str) -> bool:
        """Whether a path is a configuration of this benchmark."""
        return False

    def read_settings(self, path: str) -> Settings:
        """Read a configuration of the official tool.

        Raises:
            UserError: no such file, another benchmark's, or a key it does not know.
        """
        raise UserError(f"config: {self.title} has no configuration files; drop --config")

    def temperature_of(self, question: Question) -> float:
        """Where the decoding leaves the temperature to the benchmark."""
        return 0.0

    def sampling(self, decoding: Decoding, question: Question) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams for a question."""
        return decoding.sampling(self.temperature_of(question))

    # --- answer files

    def files(self, folder: Path, name: str) -> AnswerFiles:
        answers = folder / "model_answer" / f"{name}.jsonl"
        return AnswerFiles(answers, answers.with_suffix(".settings.json"), folder / "runs" / name)

    def token_counter(self, tokenizer: Any) -> tuple[str | None, Callable[[str], int] | None]:
        """How answers are counted in tokens, and its name, where the file holds their lengths."""
        return None, None

    def answer_row(self, name: str, question: Question, texts: list[str], time: float, count: Any) -> Row:
        """The official row of one answer."""
        return {
            "question_id": question.key,
            "answer_id": answer_id(name, question, texts),
            "model_id": name,
            "choices": [{"index": 0, "turns": [text.strip() for text in texts]}],
            "tstamp": time,
        }

    def write_answers(self, path: Path, rows: list[Row]) -> None:
        """Write the whole answer file or nothing."""
        write_rows(path, rows)

    def answer(self, row: Row) -> tuple[str | int, str, list[str]]:
        """(question key, model, text of each turn) of a row of an answer file; a row out of form raises a LookupError
        or a TypeError."""
        return row["question_id"], row["model_id"], row["choices"][0]["turns"]

    def answer_rows(self, path: str) -> list[Row]:
        return read_rows(path, self.answer_fields, f"{self.title} answers")

    def read_answers(
        self, path: str, questions: list[Question], thinking: str = "keep", more: bool = False
    ) -> tuple[str, dict[Any, list[str]]]:
        """Read a model's answer file.

        Args:
            thinking: what becomes of thoughts: strip, keep or fail.
            more: whether it may answer questions that are not asked.

        Returns:
            The model's name, and {question key: the text of each turn}.

        Raises:
            UserError: another benchmark's file, several models, a question answered twice or not at all.
        """
        what, found, models = f"{self.title} answers", [], set()
        for number, row in enumerate(self.answer_rows(path)):
            try:
                key, model, texts = self.answer(row)
            except (LookupError, TypeError) as error:
                raise UserError(f"{path}, row {number}: its turns are not those of {what}") from error
            if (
                not isinstance(texts, list)
                or len(texts) != self.turns
                or not all(isinstance(text, str) for text in texts)
            ):
                raise UserError(f"{path}, row {number}: must have {self.turns} turn(s) of text, as {what} do")
            found.append((key, texts))
            models.add(model)
        refuse_repeats(path, [key for key, _ in found])
        refuse_gaps(path, [key for key, _ in found], [question.key for question in questions], REMEDY, more)
        if len(models) > 1:
            names = ", ".join(sorted(models))
            raise UserError(f"{path}: holds answers of several models ({names}); judge each model's own file")
        return models.pop(), take_off(thinking, dict(found), path)

    # --- judging

    def judging(self, files: JudgeFiles) -> Judging:
        """All judgments to get.

        Raises:
            UserError: a file is missing, of another benchmark, or does not cover the questions.
        """
        questions = self.read_questions(files.questions)
        model, answers = self.read_answers(files.answers, questions, files.thinking)
        tasks = [task for question in questions for task in self.tasks(question, answers[question.key])]

        def rows(outcomes: dict[Any, Outcome], judge: str) -> list[Row]:
            return [self.judgment_row(model, judge, task, outcomes[task.key]) for task in tasks]

        return Judging(model, tasks, self.judge_parameters, rows, Reading(self.patterns, self.rule))

    def tasks(self, question: Question, answers: list[str]) -> list[Task]:
        """The judgments of one question."""
        raise NotImplementedError

    def judgment_row(self, model: str, judge: str, task: Task, outcome: Outcome) -> Row:
        """The row of one judgment."""
        row = {"question_id": task.question_id, "model": model, "judge": judge, "judgment": outcome.judgment}
        return row | {"score": outcome.verdict, "turn": task.part} | notes(outcome)

    def judgment_files(self, folder: Path, judge: str, model: str) -> AnswerFiles:
        """Where the judgments, the record of their settings, and the work on them go."""
        output = folder / "model_judgment" / judge / f"{model}.jsonl"
        return AnswerFiles(output, output.with_suffix(".settings.json"), folder / "judging" / judge / model)

    def write_judgments(self, path: Path, rows: list[Row]) -> None:
        """Write the whole judgment file or nothing."""
        write_rows(path, rows)

    # --- score

    def score(self, files: ScoreFiles) -> dict[str, Row]:
        """{model: its numbers}.

        Raises:
            UserError: the file is not this benchmark's, or has gaps; names file and row.
        """
        raise NotImplementedError

    def published_rows(self) -> dict[str, Row]:
        """{model: {key of a score: published number}}."""
        return published_rows(self.published)

    def published_points(self, files: ScoreFiles) -> list[Point]:
        """Published models whose answer length is known, for the plot."""
        return published_points(self.published_rows())

    def bars(self, score: Row) -> dict[str, float | None]:
        """What the plot shows of a score without a win rate."""
        return {heading: score.get(key) for heading, key, _ in self.columns}


def answer_id(name: str, question: Question, texts: list[str]) -> str:
    return uuid5(NAMESPACE_URL, "\n".join([name, str(question.key), *texts])).hex[:22]


def notes(outcome: Outcome) -> Row:
    """What a judgment's row says beside the official fields: the rule, and why there is no reply."""
    return {"rule": outcome.rule} | ({"failed": outcome.failed} if outcome.failed else {})
