"""From a model to the table: generate_answers.py on a real engine, judge.py against a server on this machine that
replays replies and fails now and then, score.py; kills in the middle included."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
import yaml
from conftest import run_script
from eval_world import CATEGORIES, World, lines, words
from judge_server import KEY, preference_reply, serving
from transformers import AutoModelForCausalLM

import generate_answers

pytestmark = pytest.mark.slow
# The kinds of endings that real judges' replies have.
VERDICTS = {
    "A>>B": "Assistant A follows the request; Assistant B repeats itself.\n\nMy final verdict is: [[A>>B]]",
    "A>B": 'Both are short, A is a little clearer.\n\nFinal Verdict: "My final verdict is slightly better: [[A>B]]".',
    "A=B": "Neither answers the question.\n\nMy final verdict is tie: [[A=B]].",
    "B>A": "B is nearer to my own answer.\n\n[[B>A]]",
    "B>>A": "A is empty.\n\nTherefore [[B>>A]], as said: [[B>>A]].",
}
UNDECIDED = "It is hard to say which of the two is better."
RATINGS = ["The answer is no text at all. Rating: [[1]]", "Short but fitting.\n\nRating: [[6.5]]", "Rating: [9]"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """One world for each benchmark, all with the same model."""
    first = World(tmp_path_factory.mktemp("eval") / "alpacaeval2")
    made = {"alpacaeval2": first}
    for benchmark in ("arenahard", "mt-bench"):
        world = World.__new__(World)
        world.__dict__ |= first.__dict__ | {"folder": first.folder.with_name(benchmark)}
        shutil.copytree(first.folder, world.folder, ignore=shutil.ignore_patterns("tiny"))
        made[benchmark] = world
    return made


def greedy(world: World, text: str, length: int = 24) -> list[int]:
    """transformers' greedy continuation of one user message, BOS once."""
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)
    messages = [{"role": "user", "content": text}]
    ids = world.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert ids["input_ids"][0].tolist().count(world.tokenizer.bos_token_id) == 1
    with torch.no_grad():
        output = model.generate(**ids, max_new_tokens=length, do_sample=False, pad_token_id=0)
    return output[0, ids["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def alpaca_answers(worlds, warm):
    """Answers to AlpacaEval's questions with --legacy_ae062 and an ordinary token as a stop token."""
    world = worlds["alpacaeval2"]
    tokens = greedy(world, words(0))
    world.stop = next(token for token in tokens[3:] if token not in world.tokenizer.all_special_ids)
    template = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
    template += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    (world.folder / "template.txt").write_text(template)
    entry = {
        "prompt_template": "template.txt",
        "fn_completions": "vllm_local_completions",
        "completions_kwargs": {
            "model_name": "somebody/else",
            "max_new_tokens": 24,
            "temperature": 0.9,
            "do_sample": True,
            "stop_token_ids": [world.stop],
        },
    }
    (world.folder / "config.yaml").write_text(yaml.safe_dump({"tiny": entry}))
    config = ["--config", str(world.folder / "config.yaml")]
    result = run_script(*world.generate("alpacaeval2", *config, "--legacy_ae062"), env=warm)
    assert result.returncode == 0, result.stderr
    return json.loads(world.answers("alpacaeval2").read_text())


def test_alpacaeval2_answers(worlds, alpaca_answers):
    """What was configured as sampling is greedy under --legacy_ae062: token for token transformers' own, up to the
    stop token, which is not part of the answer. The template and the tokenizer both write BOS; the model saw one."""
    world = worlds["alpacaeval2"]
    assert [row["instruction"] for row in alpaca_answers] == [words(i) for i in range(8)]
    assert {row["generator"] for row in alpaca_answers} == {"tiny"}
    for row in alpaca_answers[:4]:
        tokens = greedy(world, row["instruction"])
        ends = {world.stop, world.tokenizer.eos_token_id}
        cut = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        expected = world.tokenizer.decode(tokens[:cut], skip_special_tokens=True).strip()
        assert row["output"].rstrip("\ufffd") == expected.rstrip("\ufffd")  # half a character at the end
    settings = json.loads((world.answers("alpacaeval2").with_name("settings.json")).read_text())
    assert settings["decoding"]["temperature"] == 0 and settings["legacy_ae062"]
    assert settings["engine"].startswith("vllm") and settings["tokenizer_digest"]
    journal = lines(world.folder / "out" / "tiny" / "journal" / "answers.jsonl")
    assert {row["finish_reason"] for row in journal} <= {"stop", "length"} and len(journal) == 8


@pytest.fixture(scope="module")
def arena_answers(worlds, warm):
    result = run_script(*worlds["arenahard"].generate("arenahard"), env=warm)
    assert result.returncode == 0, result.stderr
    assert "question 'id6', turn 1" in result.stderr and "leave no room to answer" in result.stderr
    return lines(worlds["arenahard"].answers("arenahard"))


def test_arena_hard_answers(arena_answers):
    assert [row["question_id"] for row in arena_answers] == [f"id{i}" for i in range(7)]
    for row in arena_answers:
        turn = row["choices"][0]["turns"][0]
        assert isinstance(turn["content"], str) and turn["token_len"] >= 0
        assert row["model_id"] == "tiny" and row["tstamp"] > 0
    assert arena_answers[6]["choices"][0]["turns"][0]["content"] == ""


@pytest.fixture(scope="module")
def mt_answers(worlds, warm):
    """Killed before its engine is up; the next run finds a journal as a kill in the middle leaves it."""
    world = worlds["mt-bench"]
    command, environment = world.generate("mt-bench"), os.environ | {"OMP_NUM_THREADS": "1"} | warm
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = world.answers("mt-bench").with_suffix(".settings.json")
    while not settings.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    journal = world.folder / "out" / "runs" / "tiny" / "journal" / "answers.jsonl"
    journal.parent.mkdir(exist_ok=True)
    kept = {"turn": 1, "key": 902, "text": "kept from before", "finish_reason": "stop", "num_tokens": 3, "time": 1.0}
    journal.write_text(json.dumps(kept) + '\n{"turn": 1, "key": 903, "te')
    result = run_script(*command, env=warm)
    assert result.returncode == 0, result.stderr
    return lines(world.answers("mt-bench")), lines(journal)


def test_mt_bench_answers(mt_answers, worlds, monkeypatch):
    rows, journal = mt_answers
    assert [row["question_id"] for row in rows] == [900, 901, 902, 903]
    assert all(len(row["choices"][0]["turns"]) == 2 for row in rows)
    assert rows[2]["choices"][0]["turns"][0] == "kept from before"
    assert sorted((row["key"], row["turn"]) for row in journal) == [(900 + i, t) for i in range(4) for t in (1, 2)]
    # finished: the same command writes the same file again, without an engine
    before = worlds["mt-bench"].answers("mt-bench").read_bytes()
    monkeypatch.setattr("sys.argv", worlds["mt-bench"].generate("mt-bench")[1:])
    generate_answers.main()
    assert worlds["mt-bench"].answers("mt-bench").read_bytes() == before


def test_other_settings_are_refused(mt_answers, worlds, fails):
    world = worlds["mt-bench"]
    before = {path: path.read_bytes() for path in (world.folder / "out").rglob("*") if path.is_file()}
    assert "seed was 42, now 7" in fails(generate_answers.main, *world.generate("mt-bench", "--seed", "7")[2:])
    assert {path: path.read_bytes() for path in (world.folder / "out").rglob("*") if path.is_file()} == before


# --- judging and scoring


def judge_with_kill(world: World, benchmark: str, server, total: int) -> str:
    """Run judge.py, kill it when about half is served, run it again; returns the second run's errors."""
    environment = os.environ | {"OPENAI_API_KEY": KEY}
    command = world.judge(benchmark, server.url)
    server.slow = 0.3
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(server.served) < total // 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while server.busy:  # what was under way when the client was killed
        time.sleep(0.02)
    server.slow = 0.0
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert server.busiest <= 2
    assert len(server.served) <= total + 2  # at most what was under way is asked again
    for path in world.folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    calls = len(server.served)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and len(server.served) == calls  # all there: nothing is asked
    return result.stderr


def test_arena_hard_judged_and_scored(worlds, arena_answers):
    world, labels, undecided = worlds["arenahard"], list(VERDICTS), []

    def reply(messages):
        text = messages[1]["content"]
        number = int(text.split("number ")[1].split(":")[0])
        if number == 2 and len(messages) == 2:
            undecided.append(text)
            return UNDECIDED, []
        model_is_a = "<A>reference" not in text
        return VERDICTS[labels[(number + 2 * model_is_a) % 5]], []

    with serving(reply, faults=["429", "", "timeout", "500", "", "429"]) as server:
        judge_with_kill(world, "arenahard", server, total=16)
        assert sorted(server.refused) == ["429", "429", "500", "timeout"]
    judgments = world.folder / "out" / "model_judgment" / "judge__made" / "tiny.jsonl"
    rows = lines(judgments)
    assert [row["question_id"] for row in rows] == [f"id{i}" for i in range(7)]
    won, battles = 0.0, 0
    for number, row in enumerate(rows):
        first, second = labels[number % 5], labels[(number + 2) % 5]
        assert [game["score"] for game in row["games"]] == [first, second]
        assert "<A>reference" in row["games"][0]["user_prompt"] and "<B>reference" in row["games"][1]["user_prompt"]
        for label, side in ((first, "B"), (second, "A")):
            weight = 3 if ">>" in label else 1
            battles += weight
            won += weight * (0.5 if "=" in label else float(label.startswith(side)))
    assert undecided and UNDECIDED in rows[2]["games"][0]["judgment"]
    journal = lines(world.folder / "out" / "judging" / "judge__made" / "tiny" / "journal" / "replies.jsonl")
    asked = [(row["question_id"], row["part"], row["attempt"]) for row in journal]
    assert len(asked) == len(set(asked)) == 16
    assert world.score("arenahard", judgments)["win_rate"] == pytest.approx(100 * won / battles)


def test_mt_bench_judged_and_scored(worlds, mt_answers):
    world, given = worlds["mt-bench"], {}

    def reply(messages):
        system, text = messages[0]["content"], messages[1]["content"]
        assert ("reference answers" in text) == ("math" in system)  # references for math and coding only
        given[text] = RATINGS[len(text) % 3]
        return given[text], []

    with serving(reply, faults=["500", "", "429", "timeout"]) as server:
        judge_with_kill(world, "mt-bench", server, total=8)
    judgments = world.folder / "out" / "model_judgment" / "judge__made" / "tiny.jsonl"
    rows = lines(judgments)
    assert [(row["question_id"], row["turn"]) for row in rows] == [(900 + i, turn) for i in range(4) for turn in (1, 2)]
    assert all(row["judgment"] == given[row["user_prompt"]] for row in rows)
    assert [row["judge"][1] for row in rows[2:4]] == ["single-math-v1", "single-math-v1-multi-turn"]
    values = [{0: 1, 1: 6.5, 2: 9}[RATINGS.index(row["judgment"])] for row in rows]
    score = world.score("mt-bench", judgments)
    assert score["score"] == pytest.approx(sum(values) / 8)
    assert score["turn_2"] == pytest.approx(sum(values[1::2]) / 4)
    assert score["categories"]["math"] == pytest.approx(sum(values[2:4]) / 2)
    assert set(score["categories"]) == set(CATEGORIES)


def test_alpacaeval2_judged_and_scored(worlds, alpaca_answers):
    pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
    world = worlds["alpacaeval2"]

    def reply(messages):
        """The judge knows the reference and dislikes it to a degree that depends on the question."""
        text = messages[-1]["content"]
        number = int(text.split("number ")[1].split(":")[0])
        share = 0.3 + 0.08 * number  # of the model; the reference stands behind "M" or, swapped, behind "m"
        model_is_m = text.rindex("Reference ") > text.index('"model_identifier": "M"')
        return preference_reply(share if model_is_m else 1 - share)

    with serving(reply, faults=["429", "", "timeout", "500"]) as server:
        judge_with_kill(world, "alpacaeval2", server, total=8)
    file = world.folder / "out" / "tiny" / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json"
    rows = json.loads(file.read_text())
    assert [row["instruction"] for row in rows] == [words(i) for i in range(8)]
    score = world.score("alpacaeval2", file)
    expected = [0.3 + 0.08 * number for number in range(8)]
    assert score["win_rate"] == pytest.approx(100 * sum(expected) / 8)
    assert score["avg_length"] == int(sum(len(row["output"]) for row in alpaca_answers) / 8)
