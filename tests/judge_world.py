"""Small question, answer, reference and prompt files of each benchmark, for the tests of judge.py."""

import json
from pathlib import Path

import yaml
from conftest import write_jsonl

ARENA = [{"question_id": f"q{i}", "cluster": "c", "turns": [{"content": f"Ask {i}"}]} for i in range(3)]
MT = [{"question_id": i, "category": "writing", "turns": ["One?", "Two?"]} for i in (1, 2)]
MT.append({"question_id": 3, "category": "math", "turns": ["One?", "Two?"]})
ALPACA = [{"instruction": f"Ask {i}", "dataset": "d"} for i in range(3)]


def answers(questions: list[dict], name: str = "mine") -> list[dict]:
    rows = []
    for question in questions:
        is_arena = isinstance(question["turns"][0], dict)
        turns = [{"content": "Yes.", "token_len": 2}] if is_arena else ["Yes.", "No."]
        rows.append(
            {"question_id": question["question_id"], "model_id": name, "choices": [{"index": 0, "turns": turns}]}
        )
    return rows


def outputs(name: str = "mine") -> list[dict]:
    return [row | {"output": f"{name} says", "generator": name} for row in ALPACA]


def judge_files(folder: Path, benchmark: str, **changed: list[dict]) -> list[str]:
    """Write the judge's input files, with changed rows where given; returns judge.py's options."""
    questions = {"arenahard": ARENA, "mt-bench": MT}.get(benchmark)
    rows = {"answers": outputs(), "references": outputs("reference")}
    if questions:
        questions = changed.get("questions", questions)
        rows = {"answers": answers(questions), "references": answers(questions, "other"), "questions": questions}
    options = ["--benchmark", benchmark, "--output_dir", str(folder / "out")]
    for key, value in (rows | changed).items():
        options += [f"--{key}", str(write_jsonl(folder / f"{key}.jsonl", value))]
    if benchmark == "arenahard":
        config = {"system_prompt": "Judge.", "prompt_template": ["{question_1}{answer_1}{answer_2}"]}
        (folder / "judge_config.yaml").write_text(yaml.safe_dump(config))
        options += ["--judge_prompts", str(folder / "judge_config.yaml")]
    if benchmark == "mt-bench":
        names = ["single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"]
        prompts = [{"name": n, "type": "single", "system_prompt": "", "prompt_template": "{question}"} for n in names]
        options += ["--judge_prompts", str(write_jsonl(folder / "judge_prompts.jsonl", prompts))]
    return options


def judged_rows(folder: Path) -> list[dict]:
    """What judge.py wrote below a folder."""
    path = next(path for path in folder.rglob("*") if path.name in ("mine.jsonl", "annotations.json"))
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def scores(rows: list[dict]) -> list:
    """Arena-Hard's verdicts, both games of each row."""
    return [game["score"] for row in rows for game in row["games"]]
