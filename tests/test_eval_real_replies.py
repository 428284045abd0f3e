"""judge.py with the benchmarks' own prompts, questions and references, against recorded replies of GPT-4: it must
arrive at the recorded verdicts. Needs the recorded data; the answers judged are stand-ins where none were recorded."""

import gzip
import json
from pathlib import Path

import pytest
from conftest import write_jsonl
from judge_server import KEY, serving

import judge


def rows_of(path: Path) -> list[dict]:
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """Run judge.py against a server; returns the rows it wrote."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(benchmark: str, reply, **files: object) -> list[dict]:
        options = ["--benchmark", benchmark, "--output_dir", str(tmp_path / "out"), "--concurrency", "4"]
        for key, value in files.items():
            path = write_jsonl(tmp_path / f"{key}.jsonl", value) if isinstance(value, list) else value
            options += [f"--{key}", str(path)]
        with serving(reply, faults=["429", "", "500"]) as server:
            monkeypatch.setattr("sys.argv", ["judge.py", *options, "--base_url", server.url])
            judge.main()
        name = "annotations.json" if benchmark == "alpacaeval2" else "mine.jsonl"
        return rows_of(next((tmp_path / "out").rglob(name)))

    return run


def stand_ins(questions: list[dict], text: str, name: str) -> list[dict]:
    rows = []
    for question in questions:
        turns = [
            f"{text} {i}" if isinstance(turn, str) else {"content": text} for i, turn in enumerate(question["turns"])
        ]
        rows.append(
            {"question_id": question["question_id"], "model_id": name, "choices": [{"index": 0, "turns": turns}]}
        )
    return rows


def test_arena_hard(shared, judged):
    folder = shared / "eval_data" / "arenahard"
    recorded = {row["question_id"]: row for row in rows_of(next(folder.glob("judgment_*.jsonl.gz")))}
    questions = [row for row in rows_of(folder / "question_v0.1.jsonl.gz") if row["question_id"] in recorded]
    asked = {question["turns"][0]["content"]: question["question_id"] for question in questions}

    def reply(messages):
        text = messages[1]["content"]
        question = max((content for content in asked if content in text), key=len)
        game = 0 if text.index("the baseline's") < text.index("the model's") else 1
        return recorded[asked[question]]["games"][game]["judgment"], []

    rows = judged(
        "arenahard",
        reply,
        answers=stand_ins(questions, "the model's", "mine"),
        references=stand_ins(questions, "the baseline's", "other"),
        questions=questions,
        judge_prompts=folder / "judge_config.yaml",
    )
    assert len(rows) == len(recorded)
    for row in rows:
        scores = [game["score"] for game in row["games"]]
        assert scores == [game["score"] for game in recorded[row["question_id"]]["games"]]


def test_mt_bench(shared, judged):
    folder = shared / "eval_data" / "mt-bench"
    recorded = {}
    for row in rows_of(next(folder.glob("*single*.jsonl.gz"))):
        recorded[row["question_id"], row["turn"]] = row  # of a question judged again, the last
    questions = rows_of(folder / "mt_bench_question.jsonl")

    def reply(messages):
        text = messages[1]["content"]
        question = next(q for q in questions if q["turns"][0] in text)
        return recorded[question["question_id"], 2 if "the model's 1" in text else 1]["judgment"], []

    rows = judged(
        "mt-bench",
        reply,
        answers=stand_ins(questions, "the model's", "mine"),
        references=folder / "mt_bench_reference_answer_gpt-4.jsonl",
        questions=questions,
        judge_prompts=folder / "judge_prompts.jsonl",
    )
    assert len(rows) == 160
    for row in rows:
        expected = recorded[row["question_id"], row["turn"]]
        assert (row["score"], row["judge"][1]) == (expected["score"], expected["judge"][1])
        # the prompt is the recorded one, answers aside
        start = expected["user_prompt"].split("\n")[:3]
        assert row["user_prompt"].split("\n")[:3] == start


def test_alpacaeval2(shared, judged):
    """Recorded log-probabilities: the package swaps the two outputs by a seed of its own, so the recorded preferences
    come out only when everything that it feeds the judge is the same."""
    pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
    folder = shared / "eval_data" / "alpacaeval2"
    rows = rows_of(folder / "annotations_gemma-2b-it.json.gz")[:24]
    by_instruction = {row["instruction"]: row for row in rows}

    def reply(messages):
        text = messages[-1]["content"]
        instruction = max((key for key in by_instruction if key in text), key=len)
        raw = by_instruction[instruction]["raw_completion"]
        tokens = raw["logprobs"]["content"][0]["top_logprobs"]
        return raw["message"]["content"], [(token["token"], token["logprob"]) for token in tokens]

    def outputs(number: int) -> list[dict]:
        return [
            {
                "instruction": row["instruction"],
                "output": row[f"output_{number}"],
                "generator": row[f"generator_{number}"],
            }
            for row in rows
        ]

    made = judged("alpacaeval2", reply, answers=outputs(2), references=outputs(1))
    assert [row["instruction"] for row in made] == [row["instruction"] for row in rows]
    assert [row["preference"] for row in made] == pytest.approx([row["preference"] for row in rows], abs=1e-8)
