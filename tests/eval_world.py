"""What an evaluation's commands name: questions, references and judge prompts."""

import json
from pathlib import Path

import yaml
from conftest import write_jsonl
from pages import Checkout

BENCHMARKS = ("alpacaeval2", "arenahard", "mt-bench")
CATEGORIES = ("writing", "math", "stem", "coding")


def words(i: int) -> str:
    return f"Question number {i}: what is {i} plus {i % 5}?" + " Please explain." * (i % 3)


def write_alpaca_config(folder: Path, template: str, **kwargs: object) -> Path:
    """A generator's configuration as the AlpacaEval package has it."""
    entry = {"prompt_template": template, "fn_completions": "vllm_local_completions", "completions_kwargs": kwargs}
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": entry}))
    return folder / "config.yaml"


def question_rows(benchmark: str) -> list[dict]:
    if benchmark == "alpacaeval2":
        return [{"dataset": "made", "instruction": words(i)} for i in range(8)]
    if benchmark == "arenahard":
        texts = [words(i) for i in range(6)] + [words(6) + " And so on." * 300]  # the last is too long for the model
        return [{"question_id": f"id{i}", "cluster": "made", "turns": [{"content": t}]} for i, t in enumerate(texts)]
    return [
        {"question_id": 900 + i, "category": category, "turns": [words(i), "And why? " + words(i + 1)]}
        for i, category in enumerate(CATEGORIES)
    ]


def answer_rows(benchmark: str, name: str) -> list[dict]:
    """Answers of somebody else in the official format: a baseline, or references."""
    if benchmark == "alpacaeval2":
        return [
            row | {"output": f"Reference {row['instruction']}", "generator": name} for row in question_rows(benchmark)
        ]
    rows = []
    for row in question_rows(benchmark):
        texts = [f"{name} answers {i}, {row['question_id']}" for i in range(len(row["turns"]))]
        turns = [{"content": text, "token_len": 5} for text in texts] if benchmark == "arenahard" else texts
        rows.append({"question_id": row["question_id"], "model_id": name, "choices": [{"index": 0, "turns": turns}]})
    return rows


def add_benchmarks(checkout: Checkout) -> None:
    """Put what the evaluation's pages name into a checkout: questions, references and judge prompts."""
    folder = checkout.folder
    for benchmark in BENCHMARKS:
        write_jsonl(folder / f"{benchmark}.jsonl", question_rows(benchmark))
    (folder / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(answer_rows("alpacaeval2", "reference")))
    write_jsonl(folder / "gpt-4-0314.jsonl", answer_rows("arenahard", "reference"))
    write_jsonl(folder / "reference_answer" / "gpt-4.jsonl", answer_rows("mt-bench", "reference"))
    system = "Say which is better and end with one of the labels [[A>>B]] [[A>B]] [[A=B]] [[B>A]] [[B>>A]]."
    template = "Question: {question_1}\n<A>{answer_1}</A>\n<B>{answer_2}</B>"
    settings = {"number_of_judgment_attempts": 2, "max_tokens": 64}
    config = {"system_prompt": system, "prompt_template": [template], **settings}
    (folder / "judge_config.yaml").write_text(yaml.safe_dump(config))
    single = "{question} {answer}"
    many = "{question_1} {answer_1} {question_2} {answer_2}"
    templates = {
        "single-v1": single,
        "single-math-v1": "{ref_answer_1} " + single,
        "single-v1-multi-turn": many,
        "single-math-v1-multi-turn": "{ref_answer_1} {ref_answer_2} " + many,
    }
    write_jsonl(
        folder / "judge_prompts.jsonl",
        [
            {"name": name, "type": "single", "system_prompt": f"Rate, {name}.", "prompt_template": text}
            for name, text in templates.items()
        ],
    )


def options(stop: int) -> dict[str, str]:
    """What the commands need beside pages.OPTIONS: questions, with no network to come from, and another stop token."""
    chosen = {"*generate_answers.py *": f"--stop_token_ids {stop}"}
    for benchmark in BENCHMARKS:
        chosen |= dict.fromkeys(
            (f"*--benchmark {benchmark}*", f"*score.py {benchmark}*"), f"--questions {benchmark}.jsonl"
        )
    return chosen


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
