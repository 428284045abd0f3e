"""Riddles: the judge says [[right]] or [[wrong]]; the score is the percentage of right answers."""

from benchmarks.base import Benchmark, Question, ScoreFiles, Task
from records import Row, read_rows


class Riddles(Benchmark):
    title = "Riddles"
    question_fields = {"id": int, "riddle": str}
    decoding = {"temperature": 0.0, "max_tokens": 64}
    patterns = (r"\[\[(right|wrong)\]\]",)
    columns = [("right", "right", 1)]

    def question(self, row: Row) -> Question:
        return Question(row["id"], [row["riddle"]], row)

    def tasks(self, question: Question, answers: list[str]) -> list[Task]:
        text = f"{question.turns[0]}\nAnswer: {answers[0]}\nIs it {question.row['solution']}? [[right]] or [[wrong]]"
        return [Task(question.key, 1, [{"role": "user", "content": text}])]

    def score(self, files: ScoreFiles) -> dict[str, Row]:
        rows = read_rows(files.judgments, {"model": str, "score": str}, "Riddles judgments")
        right = [row["score"] == "right" for row in rows]
        return {rows[0]["model"]: {"right": 100 * sum(right) / len(right), "n_judgments": len(right)}}
