"""What an evaluation needs: a tiny model, questions, references and judge prompts in a folder; and the commands."""

import json
import sys
from pathlib import Path

import yaml
from conftest import ROOT, run_script, write_jsonl

from tiny_models import tiny_model, tiny_tokenizer

EVAL = ROOT / "eval"
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


class World:
    """A folder with a tiny model, question files, references, judge prompts and AlpacaEval's configuration."""

    def __init__(self, folder: Path):
        self.folder = folder
        tokenizer = tiny_tokenizer(adds_bos=True)
        self.model = tiny_model(folder / "tiny", tokenizer=tokenizer)
        self.tokenizer = tokenizer
        for benchmark in ("alpacaeval2", "arenahard", "mt-bench"):
            write_jsonl(folder / f"{benchmark}.jsonl", question_rows(benchmark))
            write_jsonl(folder / f"{benchmark}-references.jsonl", answer_rows(benchmark, "reference"))
        system = "Say which is better and end with one of the labels [[A>>B]] [[A>B]] [[A=B]] [[B>A]] [[B>>A]]."
        template = "Question: {question_1}\n<A>{answer_1}</A>\n<B>{answer_2}</B>"
        (folder / "judge_config.yaml").write_text(
            yaml.safe_dump(
                {
                    "system_prompt": system,
                    "prompt_template": [template],
                    "number_of_judgment_attempts": 2,
                    "max_tokens": 64,
                }
            )
        )
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

    def generate(self, benchmark: str, *options: str) -> list[str]:
        settings = ["--dtype", "float32", "--max_tokens", "24", "--max_model_len", "512", "--name", "tiny"]
        files = ["--questions", str(self.folder / f"{benchmark}.jsonl"), "--output_dir", str(self.folder / "out")]
        names = ["--benchmark", benchmark, "--model", self.model]
        return ["python", str(EVAL / "generate_answers.py"), *names, *files, *settings, *options]

    def judge(self, benchmark: str, url: str, *options: str) -> list[str]:
        prompts = {"arenahard": "judge_config.yaml", "mt-bench": "judge_prompts.jsonl"}.get(benchmark)
        files = ["--answers", str(self.answers(benchmark)), "--output_dir", str(self.folder / "out")]
        files += ["--references", str(self.folder / f"{benchmark}-references.jsonl")]
        if prompts:
            files += ["--judge_prompts", str(self.folder / prompts)]
            files += ["--questions", str(self.folder / f"{benchmark}.jsonl")]
        where = ["--base_url", url, "--judge", "judge/made", "--concurrency", "2", "--timeout", "3"]
        return [sys.executable, str(EVAL / "judge.py"), "--benchmark", benchmark, *files, *where, *options]

    def answers(self, benchmark: str) -> Path:
        out = self.folder / "out"
        return (
            out / "tiny" / "model_outputs.json" if benchmark == "alpacaeval2" else out / "model_answer" / "tiny.jsonl"
        )

    def score(self, benchmark: str, file: Path) -> dict:
        output = self.folder / "scores.json"
        questions = str(self.folder / f"{benchmark}.jsonl")
        script = [sys.executable, str(EVAL / "score.py"), benchmark, str(file), "--questions", questions]
        result = run_script(*script, "--output", str(output))
        assert result.returncode == 0, result.stderr
        return json.loads(output.read_text())["tiny"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
