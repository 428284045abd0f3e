"""From a model to the table, with the commands of eval/README.md and docs/reproduce.md: generate_answers.py on a real
engine, judge.py against a server on this machine that replays replies and fails now and then, score.py; kills in the
middle included."""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from crashes import contents
from eval_world import BENCHMARKS, CATEGORIES, add_benchmarks, lines, options, words
from judge_server import KEY, JudgeServer, preference_reply, serving
from pages import Checkout, block
from transformers import AutoModelForCausalLM, AutoTokenizer

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
NAME = "Llama-3-Instruct-8B-SimPO"
MODEL = f"princeton-nlp/{NAME}"
RATINGS = ["The answer is no text at all. Rating: [[1]]", "Short but fitting.\n\nRating: [[6.5]]", "Rating: [9]"]


class World:
    """A checkout in which the commands of eval/README.md run, and those commands by their benchmark."""

    def __init__(self, folder: Path, warm: Mapping[str, str]):
        self.checkout = Checkout(folder, warm)
        self.tokenizer = AutoTokenizer.from_pretrained(self.checkout.folder / MODEL)
        self.stop = greedy(self.checkout.folder / MODEL, words(0))[-1]  # an ordinary token, which is in it before
        self.checkout.add_options(options(self.stop))
        add_benchmarks(self.checkout)
        commands = self.checkout.commands(block("eval/README.md", "generate_answers.py"))
        self.generate, self.judge, self.score = (
            dict(zip(BENCHMARKS, commands[first::3], strict=True)) for first in range(3)
        )

    def out(self, benchmark: str) -> Path:
        return self.checkout.folder / "outputs" / "eval" / benchmark

    def read_score(self, file: str) -> dict:
        return json.loads((self.checkout.folder / "outputs" / "scores" / file).read_text())[NAME]


@pytest.fixture(scope="module")
def world(tmp_path_factory, warm):
    return World(tmp_path_factory.mktemp("eval"), warm)


def greedy(model: Path, text: str, length: int = 24) -> list[int]:
    """transformers' greedy continuation of one user message, BOS once."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert ids["input_ids"][0].tolist().count(tokenizer.bos_token_id) == 1
    with torch.no_grad():
        output = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).generate(
            **ids, max_new_tokens=length, do_sample=False, pad_token_id=0
        )
    return output[0, ids["input_ids"].shape[1] :].tolist()


def preference(messages):
    """AlpacaEval's judge knows the reference and dislikes it to a degree that depends on the question."""
    text = messages[-1]["content"]
    number = int(text.split("number ")[1].split(":")[0])
    share = 0.3 + 0.08 * number  # of the model; the reference stands behind "M" or, swapped, behind "m"
    model_is_m = text.rindex("Reference ") > text.index('"model_identifier": "M"')
    return preference_reply(share if model_is_m else 1 - share)


WIN_RATE = 100 * sum(0.3 + 0.08 * number for number in range(8)) / 8


def test_from_data_to_table(world):
    """docs/reproduce.md: trained, checked, answered, judged, scored, reported.

    What the shipped configuration samples is greedy under --legacy_ae062: token for token transformers' own, up to the
    stop token, which is not part of the answer. The template and the tokenizer both write BOS; the model saw one."""
    folder = world.checkout.folder
    with serving(preference) as server:
        out, errors = world.checkout.run(block("docs/reproduce.md", "run_simpo.py"), **of_judge(server))
    assert "all prompts agree" in out and "sampling at temperature" not in errors
    assert (folder / "report.html").is_file()
    made = world.out("alpacaeval2").rename(folder / "reproduced") / NAME
    rows = json.loads((made / "model_outputs.json").read_text())
    assert [row["instruction"] for row in rows] == [words(i) for i in range(8)]
    assert {row["generator"] for row in rows} == {NAME}
    cuts = []
    for row in rows[:4]:
        tokens = greedy(folder / "outputs" / "llama-3-8b-instruct-simpo", row["instruction"])
        ends = {world.stop, world.tokenizer.eos_token_id}
        cuts.append(next((i for i, token in enumerate(tokens) if token in ends), len(tokens)))
        expected = world.tokenizer.decode(tokens[: cuts[-1]], skip_special_tokens=True).strip()
        assert row["output"].rstrip("\ufffd") == expected.rstrip("\ufffd")  # half a character at the end
    assert min(cuts) < 24
    settings = json.loads((made / "settings.json").read_text())
    assert settings["decoding"]["temperature"] == 0 and settings["legacy_ae062"]
    assert settings["engine"].startswith("vllm") and settings["tokenizer_digest"]
    journal = lines(made / "journal" / "answers.jsonl")
    assert {row["finish_reason"] for row in journal} <= {"stop", "length"} and len(journal) == 8
    assert world.read_score("alpacaeval2-annotations.json")["win_rate"] == pytest.approx(WIN_RATE)


@pytest.fixture(scope="module")
def alpaca_answers(world):
    _, errors = world.checkout.run(world.generate["alpacaeval2"])
    assert "sampling at temperature 0.9" in errors
    return json.loads((world.out("alpacaeval2") / NAME / "model_outputs.json").read_text())


@pytest.fixture(scope="module")
def arena_answers(world):
    _, errors = world.checkout.run(world.generate["arenahard"])
    assert "question 'id6', turn 1" in errors and "leave no room to answer" in errors
    return lines(world.out("arenahard") / "model_answer" / f"{NAME}.jsonl")


def test_arena_hard_answers(arena_answers):
    assert [row["question_id"] for row in arena_answers] == [f"id{i}" for i in range(7)]
    for row in arena_answers:
        turn = row["choices"][0]["turns"][0]
        assert isinstance(turn["content"], str) and turn["token_len"] >= 0
        assert row["model_id"] == NAME and row["tstamp"] > 0
    assert arena_answers[6]["choices"][0]["turns"][0]["content"] == ""


@pytest.fixture(scope="module")
def mt_answers(world):
    """Killed before its engine is up; the next run finds a journal as a kill in the middle leaves it."""
    command, out = world.generate["mt-bench"], world.out("mt-bench")
    process = world.checkout.start(command)
    while not (out / "model_answer" / f"{NAME}.settings.json").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    journal = out / "runs" / NAME / "journal" / "answers.jsonl"
    journal.parent.mkdir(exist_ok=True)
    kept = {"turn": 1, "key": 902, "text": "kept from before", "finish_reason": "stop", "num_tokens": 3, "time": 1.0}
    journal.write_text(json.dumps(kept) + '\n{"turn": 1, "key": 903, "te')
    world.checkout.run(command)
    return lines(out / "model_answer" / f"{NAME}.jsonl"), lines(journal)


def test_mt_bench_answers(mt_answers, world, monkeypatch):
    rows, journal = mt_answers
    assert [row["question_id"] for row in rows] == [900, 901, 902, 903]
    assert all(len(row["choices"][0]["turns"]) == 2 for row in rows)
    assert rows[2]["choices"][0]["turns"][0] == "kept from before"
    assert sorted((row["key"], row["turn"]) for row in journal) == [(900 + i, t) for i in range(4) for t in (1, 2)]
    # finished: the same command writes the same file again, without an engine
    monkeypatch.chdir(world.checkout.folder)
    before = contents(world.out("mt-bench"), "model_answer/*.jsonl")
    monkeypatch.setattr("sys.argv", world.generate["mt-bench"][1:])
    generate_answers.main()
    assert len(before) == 1 and contents(world.out("mt-bench"), "model_answer/*.jsonl") == before


def test_other_settings_are_refused(mt_answers, world, fails, monkeypatch):
    monkeypatch.chdir(world.checkout.folder)
    before = contents(world.out("mt-bench"))
    assert "seed was 42, now 7" in fails(generate_answers.main, *world.generate["mt-bench"][2:], "--seed", "7")
    assert contents(world.out("mt-bench")) == before


# --- judging and scoring


def of_judge(server: JudgeServer) -> dict[str, str]:
    return {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}


def judge_with_kill(world: World, benchmark: str, server: JudgeServer, total: int) -> None:
    """Run judge.py, kill it when about half is served, run it again, and once more; then score.py."""
    command, environment = world.judge[benchmark], of_judge(server)
    server.slow = 0.3
    process = world.checkout.start(command, **environment)
    while len(server.served) < total // 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while server.busy:  # what was under way when the client was killed
        time.sleep(0.02)
    server.slow = 0.0
    world.checkout.run(command, **environment)
    assert server.busiest <= 2
    assert len(server.served) <= total + 2  # at most what was under way is asked again
    for path in world.out(benchmark).rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    calls = len(server.served)
    world.checkout.run(command, **environment)
    assert len(server.served) == calls  # all there: nothing is asked
    world.checkout.run(world.score[benchmark])


def test_arena_hard_judged_and_scored(world, arena_answers):
    labels, undecided = list(VERDICTS), []

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
    rows = lines(world.out("arenahard") / "model_judgment" / "gpt-4-1106-preview" / f"{NAME}.jsonl")
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
    judging = world.out("arenahard") / "judging" / "gpt-4-1106-preview" / NAME
    journal = lines(judging / "journal" / "replies.jsonl")
    asked = [(row["question_id"], row["part"], row["attempt"]) for row in journal]
    assert len(asked) == len(set(asked)) == 16
    assert world.read_score(f"arenahard-{NAME}.json")["win_rate"] == pytest.approx(100 * won / battles)


def test_mt_bench_judged_and_scored(world, mt_answers):
    given = {}

    def reply(messages):
        system, text = messages[0]["content"], messages[1]["content"]
        assert ("reference answers" in text) == ("math" in system)  # references for math and coding only
        given[text] = RATINGS[len(text) % 3]
        return given[text], []

    with serving(reply, faults=["500", "", "429", "timeout"]) as server:
        judge_with_kill(world, "mt-bench", server, total=8)
    rows = lines(world.out("mt-bench") / "model_judgment" / "gpt-4" / f"{NAME}.jsonl")
    assert [(row["question_id"], row["turn"]) for row in rows] == [(900 + i, turn) for i in range(4) for turn in (1, 2)]
    assert all(row["judgment"] == given[row["user_prompt"]] for row in rows)
    assert [row["judge"][1] for row in rows[2:4]] == ["single-math-v1", "single-math-v1-multi-turn"]
    values = [{0: 1, 1: 6.5, 2: 9}[RATINGS.index(row["judgment"])] for row in rows]
    score = world.read_score(f"mt-bench-{NAME}.json")
    assert score["score"] == pytest.approx(sum(values) / 8)
    assert score["turn_2"] == pytest.approx(sum(values[1::2]) / 4)
    assert score["categories"]["math"] == pytest.approx(sum(values[2:4]) / 2)
    assert set(score["categories"]) == set(CATEGORIES)


def test_alpacaeval2_judged_and_scored(world, alpaca_answers):
    with serving(preference, faults=["429", "", "timeout", "500"]) as server:
        judge_with_kill(world, "alpacaeval2", server, total=8)
    out = world.out("alpacaeval2") / NAME / "weighted_alpaca_eval_gpt4_turbo"
    rows = json.loads((out / "annotations.json").read_text())
    assert [row["instruction"] for row in rows] == [words(i) for i in range(8)]
    score = world.read_score("alpacaeval2-annotations.json")
    assert score["win_rate"] == pytest.approx(WIN_RATE)
    assert score["avg_length"] == int(sum(len(row["output"]) for row in alpaca_answers) / 8)
