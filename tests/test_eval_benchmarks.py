"""What a benchmark's file is enough for: one more, added here, and both layouts of Arena-Hard's files."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_jsonl
from judge_server import KEY, serving

import benchmarks
import generate_answers
import judge
import score
from simpo.engine.vllm import Response
from tiny_models import tiny_tokenizer


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script's main() with options; returns what it printed."""

    def call(main, *options: object) -> str:
        monkeypatch.setattr("sys.argv", ["script.py", *map(str, options)])
        main()
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


@pytest.fixture
def engine(monkeypatch):
    """Replace the engine by a function from a prompt's text to an answer."""

    def replace(answer, tokenizer) -> None:
        def generate(llm, requests):
            for request in requests:
                yield Response(request.key, answer(tokenizer.decode(request.token_ids)), "stop", 5)

        for name, value in {
            "engine_settings": lambda *args, **kwargs: {},
            "context_length": lambda engine: 512,
            "start_engine": lambda engine: None,
            "generate": generate,
        }.items():
            monkeypatch.setattr(generate_answers, name, value)

    return replace


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tmp_path, tokenizer) -> str:
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_benchmark_is_one_file(tmp_path, monkeypatch, run, engine, tokenizer, model):
    """tests/added_benchmark/riddles.py, put where the benchmarks are, is answered, judged and scored."""
    folder = Path(__file__).parent / "added_benchmark"
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(folder)])
    rows = [{"id": i, "riddle": f"What is {i} plus {i}?", "solution": str(2 * i)} for i in range(1, 5)]
    questions = ["--questions", write_jsonl(tmp_path / "q.jsonl", rows), "--output_dir", tmp_path / "out"]
    engine(lambda prompt: "<think>\nHm.\n</think>\n\n2" if "1 plus" in prompt else "4", tokenizer)
    run(generate_answers.main, "--benchmark", "riddles", "--model", model, "--name", "mine", *questions)
    answers = tmp_path / "out" / "model_answer" / "mine.jsonl"
    assert [row["choices"][0]["turns"] for row in rows_of(answers)] == [["2"], ["4"], ["4"], ["4"]]

    def reply(messages):
        said, solution = messages[-1]["content"].split("Answer: ")[1].split("\nIs it ")
        return f"[[{'right' if solution.startswith(said + '?') else 'wrong'}]]", []

    with serving(reply) as server:
        run(judge.main, "--benchmark", "riddles", "--answers", answers, *questions, "--base_url", server.url)
    judgments = tmp_path / "out" / "model_judgment" / "gpt-4-1106-preview" / "mine.jsonl"
    said = run(score.main, "riddles", judgments, "--output", tmp_path / "scores.json")
    assert "50.0" in said and json.loads((tmp_path / "scores.json").read_text())["mine"]["right"] == 50
    assert (tmp_path / "scores.png").is_file()


# --- Arena-Hard's files of today

TODAY = [{"uid": f"u{i}", "category": "arena-hard-v0.1", "cluster": "c", "prompt": f"Ask {i}"} for i in range(3)]


def answers_of_today(name: str, rows: list[dict]) -> list[dict]:
    return [
        {
            "uid": row["uid"],
            "ans_id": "x",
            "model": name,
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": {"answer": f"{name} says"}},
            ],
            "tstamp": 1.0,
            "metadata": {"token_len": 2},
        }
        for row in rows
    ]


def judge_config(path: Path) -> Path:
    template = "Q: {QUESTION}\nA: {ANSWER_A}\nB: {ANSWER_B}"
    patterns = [r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"]
    content = {"system_prompt": "Judge.", "prompt_template": template, "regex_patterns": patterns, "max_tokens": 64}
    path.write_text(yaml.safe_dump(content))
    return path


def test_arena_hard_of_today(tmp_path, run, engine, tokenizer, model):
    """Questions with uid and prompt: answers, judgments and scores in the same layout; v0.1's by v0.1's rule."""
    questions = ["--questions", write_jsonl(tmp_path / "q.jsonl", TODAY), "--output_dir", tmp_path / "out"]
    engine(lambda prompt: "mine says", tokenizer)
    run(generate_answers.main, "--benchmark", "arenahard", "--model", model, "--name", "mine", *questions)
    answers = tmp_path / "out" / "model_answer" / "mine.jsonl"
    for row, question in zip(rows_of(answers), TODAY, strict=True):
        assert (row["uid"], row["model"]) == (question["uid"], "mine") and row["metadata"]["token_len"] > 0
        assert row["messages"][0] == {"role": "user", "content": question["prompt"]}
        assert row["messages"][1]["content"] == {"answer": "mine says"}
    references = write_jsonl(tmp_path / "r.jsonl", answers_of_today("base", TODAY))
    files = ["--answers", answers, "--references", references, "--judge_prompts", judge_config(tmp_path / "j.yaml")]
    with serving(lambda messages: ("At first [[A>B]], but [[B>A]]", [])) as server:
        run(judge.main, "--benchmark", "arenahard", *files, *questions, "--base_url", server.url)
        first = server.served[0]["messages"]
    assert first[1]["content"].startswith("Q: Ask") and "base says" in first[1]["content"]
    judgments = tmp_path / "out" / "model_judgment" / "gpt-4-1106-preview" / "mine.jsonl"
    row = rows_of(judgments)[0]
    assert (row["uid"], row["category"], row["model"], row["baseline"]) == ("u0", "arena-hard-v0.1", "mine", "base")
    assert [game["score"] for game in row["games"]] == ["B>A", "B>A"]  # the last verdict, as today's tool reads
    assert row["games"][0]["judgment"]["answer"].startswith("At first") and row["games"][0]["prompt"] == first
    said = run(
        score.main, "arenahard", judgments, "--answers", answers, "--output", tmp_path / "s.json", *questions[:2]
    )
    assert "not the verdict" not in said and "v2.0" not in said
    scored = json.loads((tmp_path / "s.json").read_text())["mine"]
    assert scored["win_rate"] == 50 and scored["n_battles"] == 6 and scored["avg_length"] > 0


def test_system_prompt_of_today_is_asked_for(tmp_path, fails):
    config = judge_config(tmp_path / "j.yaml")
    config.write_text(config.read_text().replace("system_prompt", "other"))
    files = [f"--answers={write_jsonl(tmp_path / 'a.jsonl', answers_of_today('mine', TODAY))}"]
    files += [f"--references={write_jsonl(tmp_path / 'r.jsonl', answers_of_today('base', TODAY))}"]
    files += [f"--questions={write_jsonl(tmp_path / 'q.jsonl', TODAY)}", f"--judge_prompts={config}"]
    message = fails(judge.main, "--benchmark", "arenahard", *files)
    assert "today's Arena-Hard" in message and "add it as system_prompt" in message


def test_questions_of_v2_have_a_rule_of_their_own(tmp_path, run):
    """A question with a game without a verdict is dropped whole; the mean of bootstrap rounds, 5 and 95 percentiles;
    one score for each category."""
    games = {"u0": ("A>B", "A>B"), "u1": ("B>>A", "A=B"), "u2": ("A<B", None), "u3": ("B=A", "B<<A")}
    rows = [
        {
            "uid": uid,
            "category": "creative_writing" if uid == "u3" else "hard_prompt",
            "judge": "gpt-4.1",
            "model": "mine",
            "games": [{"score": s, "judgment": {"answer": f"[[{s}]]" if s else "?"}} for s in scores],
        }
        for uid, scores in games.items()
    ]
    said = run(score.main, "arenahard", write_jsonl(tmp_path / "j.jsonl", rows), "--output", tmp_path / "s.json")
    assert "hard_prompt is of Arena-Hard v2.0: scored by its rule, not comparable" in said
    scored = json.loads((tmp_path / "s.json").read_text())
    assert set(scored) == {"mine (hard_prompt)", "mine (creative_writing)"}
    hard = scored["mine (hard_prompt)"]
    # u0: lost as B, won as A; u1: won three times as B, tied as A; u2 is dropped
    won = [0, 1, 1, 1, 1, 0.5]
    assert hard["n_battles"] == 6 and hard["n_questions"] == 2
    assert hard["win_rate"] == pytest.approx(100 * np.mean(won), abs=6)
    assert 0 <= hard["ci_low"] < hard["win_rate"] < hard["ci_high"] <= 100
    assert scored["mine (creative_writing)"]["n_battles"] == 4


# --- answers


def test_a_question_that_cannot_be_asked(tmp_path, run, engine, tokenizer, model, fails):
    """A template that refuses one question, and one that is too long: listed, answered with nothing, asked again on
    request."""
    template = "{% if 'no' in messages[0]['content'] %}{{ raise_exception('not this') }}{% endif %}"
    rows = [{"instruction": text} for text in ("Ask 0", "no thanks", "And so on. " * 300, "Ask \ud83d")]
    questions = ["--questions", write_jsonl(tmp_path / "q.jsonl", rows), "--output_dir", tmp_path / "out"]
    engine(lambda prompt: "Yes.", tokenizer)
    where = ["--benchmark", "alpacaeval2", "--model", model, "--name", "mine", *questions]
    chat = ["--chat_template", template + tokenizer.chat_template]
    said = run(generate_answers.main, *where, *chat)
    assert "'no thanks', turn 1: the chat template refuses" in said and "leave no room to answer" in said
    assert "2 of 4 answers are empty" in said
    output = tmp_path / "out" / "mine" / "model_outputs.json"
    assert [row["output"] for row in json.loads(output.read_text())] == ["Yes.", "", "", "Yes."]
    assert "turn 1:" not in run(generate_answers.main, *where, *chat)
    assert "turn 1: the chat template refuses" in run(generate_answers.main, *where, *chat, "--retry_failed")
    other = [*where[:-1], tmp_path / "other"]
    refusing = "{{ raise_exception('nothing') }}"
    assert "no question can be asked" in fails(generate_answers.main, *map(str, other), "--chat_template", refusing)


@pytest.mark.parametrize("policy", ["strip", "keep", "fail"])
def test_answers_with_thoughts(tmp_path, run, engine, tokenizer, model, fails, policy):
    """The second turn is asked with the first answer as it is judged."""
    rows = [{"question_id": i, "category": "math", "turns": [f"Ask {i}", "Why?"]} for i in range(2)]
    questions = ["--questions", write_jsonl(tmp_path / "q.jsonl", rows), "--output_dir", tmp_path / "out"]
    prompts = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "<think>Never en" if "Ask 1" in prompt and "Why" in prompt else "<think>Hm.</think>\n\nYes."

    engine(answer, tokenizer)
    where = ["--benchmark", "mt-bench", "--model", model, "--name", "mine", *questions, "--thinking", policy]
    if policy == "fail":
        assert "holds thoughts (--thinking fail)" in fails(generate_answers.main, *map(str, where))
        return
    said = run(generate_answers.main, *where)
    turns = [row["choices"][0]["turns"] for row in rows_of(tmp_path / "out" / "model_answer" / "mine.jsonl")]
    second = next(prompt for prompt in prompts if "Why" in prompt)
    if policy == "keep":
        assert "4 answers hold thoughts" in said and turns[0] == ["<think>Hm.</think>\n\nYes."] * 2 and "Hm." in second
    else:
        assert "the thoughts of 3 answers are left out" in said and "1 answers were cut inside their thoughts" in said
        assert turns == [["Yes.", "Yes."], ["Yes.", ""]] and "Hm." not in second


def test_a_template_that_opens_the_thoughts(tmp_path, run, engine, tokenizer, model):
    """Then all is thoughts up to the closing tag, or to the end."""
    rows = [{"instruction": f"Ask {i}"} for i in range(2)]
    questions = ["--questions", write_jsonl(tmp_path / "q.jsonl", rows), "--output_dir", tmp_path / "out"]
    engine(lambda prompt: "Hm.\n</think>\n\nYes." if "Ask 0" in prompt else "Hm, let me", tokenizer)
    template = tokenizer.chat_template + "<think>\n"
    where = ["--benchmark", "alpacaeval2", "--model", model, "--name", "mine", *questions]
    said = run(generate_answers.main, *where, "--chat_template", template)
    assert [row["output"] for row in json.loads((tmp_path / "out/mine/model_outputs.json").read_text())] == ["Yes.", ""]
    assert "1 answers were cut inside their thoughts" in said
