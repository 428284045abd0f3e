"""The official tools' answer files, and where they and the records of their making lie."""

from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from questions import Question
from records import Row, write_lines
from simpo.console import warn
from simpo.files import write_json


class AnswerFiles(NamedTuple):
    """Where one model's answers to one benchmark go."""

    answers: Path
    settings: Path
    work: Path
    """Folder of the lock and the journal."""


def answer_files(benchmark: str, output_dir: str, name: str) -> AnswerFiles:
    """alpaca-eval takes any model_outputs.json; Arena-Hard and FastChat look for model_answer/NAME.jsonl."""
    folder = Path(output_dir)
    if benchmark == "alpacaeval2":
        return AnswerFiles(folder / name / "model_outputs.json", folder / name / "settings.json", folder / name)
    answers = folder / "model_answer" / f"{name}.jsonl"
    return AnswerFiles(answers, answers.with_suffix(".settings.json"), folder / "runs" / name)


def write_answers(
    benchmark: str, files: AnswerFiles, name: str, questions: list[Question], finished: list[dict[Any, Row]], count: Any
) -> None:
    """Write the whole answer file, in the questions' order.

    Args:
        finished: per turn {question key: {"text", "time", ...}}.
        count: function from a text to its number of tokens (Arena-Hard's token_len).
    """
    if benchmark == "alpacaeval2":
        rows = [
            {"dataset": question.row.get("dataset", ""), "instruction": question.key}
            | {"output": finished[0][question.key]["text"].strip(), "generator": name}
            for question in questions
        ]
        return write_json(files.answers, rows)
    rows = []
    for question in questions:
        texts = [turn[question.key]["text"] for turn in finished]
        if benchmark == "arenahard":
            turns: list[Any] = [{"content": text, "token_len": count(text)} for text in texts]
        else:
            turns = [text.strip() for text in texts]
        rows.append(
            {
                "question_id": question.key,
                "answer_id": uuid5(NAMESPACE_URL, "\n".join([name, str(question.key), *texts])).hex[:22],
                "model_id": name,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": finished[-1][question.key]["time"],
            }
        )
    write_lines(files.answers, rows)


def token_counter(tokenizer: Any) -> tuple[str, Any]:
    """Arena-Hard's way of counting an answer's tokens, with its name: GPT-3.5's encoding.

    Without network its table may be missing; the model's own tokenizer then counts, with a warning.
    """
    import requests
    import tiktoken

    try:
        encoding = tiktoken.encoding_for_model("gpt-3.5-turbo")
        return "gpt-3.5-turbo (tiktoken)", lambda text: len(encoding.encode(text, disallowed_special=()))
    except requests.RequestException:
        warn("tiktoken cannot download GPT-3.5's encoding: token_len is counted with the model's own tokenizer")
        return "the model's own", lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
