"""The benchmarks' questions, from the hub or from a local file."""

from typing import Any, NamedTuple

from records import Row, read_rows, refuse_repeats
from simpo.console import UserError

BENCHMARKS = ("alpacaeval2", "arenahard", "mt-bench")
TURNS = {"alpacaeval2": 1, "arenahard": 1, "mt-bench": 2}
# (repository, its type, file)
HUB = {
    "alpacaeval2": ("tatsu-lab/alpaca_eval", "dataset", "alpaca_eval_gpt4_baseline.json"),
    "arenahard": ("lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v0.1/question.jsonl"),
    "mt-bench": ("lmsys/mt-bench", "space", "data/mt_bench/question.jsonl"),
}
FIELDS: dict[str, dict[str, Any]] = {
    "alpacaeval2": {"instruction": str},
    "arenahard": {"question_id": str, "turns": list},
    "mt-bench": {"question_id": int, "category": str, "turns": list},
}
NAMES = {
    "alpacaeval2": "AlpacaEval instructions",
    "arenahard": "Arena-Hard questions",
    "mt-bench": "MT-Bench questions",
}


class Question(NamedTuple):
    """One question: its key (question_id; AlpacaEval's instruction itself), the user's turns, and the file's row."""

    key: str | int
    turns: list[str]
    row: Row

    @property
    def category(self) -> str:
        return self.row.get("category", "")


def check_benchmark(benchmark: str) -> None:
    if benchmark not in BENCHMARKS:
        raise UserError(f"benchmark: {benchmark!r} is none of {', '.join(BENCHMARKS)}")


def load_questions(benchmark: str, path: str | None) -> list[Question]:
    """Read a benchmark's questions, in the file's order.

    Args:
        path: local .json or .jsonl file (also .gz), or None for the benchmark's own file on the hub.

    Raises:
        UserError: the file is of another benchmark, a question is empty, repeated or has the wrong number of turns.
    """
    path = path or download(benchmark)
    questions = []
    for number, row in enumerate(read_rows(path, FIELDS[benchmark], NAMES[benchmark])):
        if benchmark == "alpacaeval2":
            key, turns = row["instruction"], [row["instruction"]]
        else:  # Arena-Hard's turns are objects, MT-Bench's are text
            key = row["question_id"]
            turns = [turn.get("content") if isinstance(turn, dict) else turn for turn in row["turns"]]
        if len(turns) != TURNS[benchmark] or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise UserError(
                f"{path}, row {number}: {NAMES[benchmark]} have {TURNS[benchmark]} turn(s) of text, found {len(turns)}"
                f"{' with an empty one' if len(turns) == TURNS[benchmark] else ''}; is this another benchmark's file?"
            )
        questions.append(Question(key, turns, row))
    refuse_repeats(path, [question.key for question in questions])
    return questions


def download(benchmark: str) -> str:
    """Fetch the benchmark's file from the hub, or find it in the cache.

    Raises:
        UserError: the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, kind, file = HUB[benchmark]
    try:
        return hf_hub_download(repo_id=repository, repo_type=kind, filename=file)
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"questions: {file} of {repository} cannot be downloaded ({type(error).__name__}); name a local file "
            "with --questions"
        ) from error
