"""generate_answers.py and judge.py killed anywhere, and their files torn: the same command finishes, and nothing that
was answered or paid for is asked again."""

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import write_jsonl
from crashes import contents, stops_of
from judge_server import FOR_A_WHILE, KEY, serving
from judge_world import judge_files

import generate_answers
import judge
from simpo.engine.vllm import Response
from tiny_models import tiny_tokenizer

QUESTIONS = [{"question_id": f"q{i}", "cluster": "c", "turns": [{"content": f"Ask {i}?"}]} for i in range(4)]
VERDICTS = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def verdict(messages: list[dict]) -> tuple[str, list]:
    """A verdict that depends on what is judged; some after thoughts, some only when asked again."""
    text = messages[1]["content"]
    number = int(text.split("Ask ")[1].split("?")[0])
    said = f"[[{VERDICTS[number % 5]}]]"
    if number % 3 == 1 and len(messages) == 2:
        return "Hard to say.", []
    return (f"<think>[[A>B]]? No.</think> {said}" if number % 3 == 2 else said), []


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole_lines(path: Path) -> list[dict]:
    """The rows of a journal that a kill may have torn."""
    rows = []
    for line in path.read_text(errors="replace").split("\n"):
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def journal_of(out: Path) -> list[dict]:
    return [row for path in out.rglob("replies.jsonl") for row in whole_lines(path)]


def without_times(found: dict[str, bytes]) -> dict[str, object]:
    """Files by path, JSON values without what tells the time."""

    def clean(value):
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in ("time", "tstamp", "seconds", "preference_date")}
        return [clean(v) for v in value] if isinstance(value, list) else value

    texts = {path: content.decode() for path, content in found.items()}
    return {
        path: clean(json.loads(text) if path.endswith(".json") else [json.loads(line) for line in text.splitlines()])
        for path, text in texts.items()
    }


@pytest.mark.slow
def test_judging_killed_at_every_file_operation(tmp_path, monkeypatch):
    """The final files are those of an uninterrupted run; what the journal held is not asked again."""
    options, out = judge_files(tmp_path, "arenahard", questions=QUESTIONS), tmp_path / "out"

    def fault_of(request: dict) -> str:
        return "filter" if "Ask 3" in request["messages"][-1]["content"] else ""

    with serving(verdict, fault_of=fault_of) as server:
        monkeypatch.setattr("sys.argv", ["judge.py", *options, "--base_url", server.url, "--concurrency", "1"])
        stops = stops_of(judge.main, out, tmp_path / "stops")
        whole, replies = without_times(contents(out, "model_judgment/**/*.json*")), len(server.served)
        assert len(stops) > 10 and replies == 8
        for stop in stops:
            stop.restore()
            kept = sum(not row["failed"] for row in journal_of(out))
            server.served.clear()
            judge.main()
            assert without_times(contents(out, "model_judgment/**/*.json*")) == whole, stop
            assert len(server.served) == replies - kept, stop


@pytest.fixture
def recorded_engine(monkeypatch):
    """The engine replaced by a function of the prompt and the noise; counts what it was asked."""
    asked = []

    def generate(engine, requests):
        for request in requests:
            asked.append(request.key)
            yield Response(request.key, f"Answer {request.sampling['seed'] % 1000} é", "stop", 5)

    for name, value in {
        "engine_settings": lambda *args, **kwargs: {},
        "context_length": lambda engine: 512,
        "start_engine": lambda engine: None,
        "generate": generate,
    }.items():
        monkeypatch.setattr(generate_answers, name, value)
    return asked


@pytest.mark.slow
def test_answering_killed_at_every_file_operation(tmp_path, monkeypatch, recorded_engine):
    questions = [{"question_id": i, "category": "math", "turns": [f"Ask {i}", "Why?"]} for i in range(2)]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    files = ["--questions", str(write_jsonl(tmp_path / "q.jsonl", questions)), "--output_dir", str(tmp_path / "out")]
    argv = ["generate_answers.py", "--benchmark", "mt-bench", "--model", str(tmp_path / "model"), *files]
    monkeypatch.setattr("sys.argv", argv)
    out = tmp_path / "out"
    stops = stops_of(generate_answers.main, out, tmp_path / "stops")
    whole = without_times(contents(out, "model_answer/*"))
    assert len(recorded_engine) == 4 and len(stops) > 10
    for stop in stops:
        stop.restore()
        kept = sum(len(whole_lines(path)) for path in out.rglob("answers.jsonl"))
        recorded_engine.clear()
        generate_answers.main()
        assert without_times(contents(out, "model_answer/*")) == whole, stop
        assert len(recorded_engine) == 4 - kept, stop


def test_killed_at_random_while_the_judge_misbehaves(tmp_path, monkeypatch):
    """Real kills, in the midst of rate limits, dropped connections, pages and half replies: all that can be judged is
    judged, and at most what was under way at a kill is paid for twice."""
    noise, concurrency, kills, faults = random.Random(0), 4, 0, Counter()
    many = [{"question_id": f"q{i}", "cluster": "c", "turns": [{"content": f"Ask {i}?"}]} for i in range(15)]
    options, out = judge_files(tmp_path, "arenahard", questions=many), tmp_path / "out"

    def fault_of(request: dict) -> str:
        asked = request["messages"][-1]["content"]
        if "Ask 7?" in asked:
            return "flagged"
        if faults[asked] == 2 or not server.served or noise.random() > 0.4:  # a third half reply would be the last
            return ""
        faults[asked] += 1
        return noise.choice(FOR_A_WHILE)

    monkeypatch.setattr("simpo.judge.client.FIRST_WAIT", 0.01)
    with serving(verdict, fault_of=fault_of, slow=0.01) as server:
        argv = ["judge.py", *options, "--base_url", server.url, "--concurrency", str(concurrency), "--timeout", "30"]
        argv += ["--judge", "judge/made"]
        monkeypatch.setattr("sys.argv", argv)
        while True:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    judge.main()
                    status = 0
                finally:
                    os._exit(status)
            if kills < 8:
                time.sleep(noise.uniform(0.02, 0.25))
                os.kill(child, signal.SIGKILL)
                kills += 1
            ended = os.waitpid(child, 0)[1]
            if os.WIFEXITED(ended):
                assert os.WEXITSTATUS(ended) == 0
                break
        rows = rows_of(out / "model_judgment" / "judge__made" / "mine.jsonl")
        expected = [None if i == 7 else VERDICTS[i % 5] for i in range(15)]
        assert [[game["score"] for game in row["games"]] for row in rows] == [[v, v] for v in expected]
        kept = Counter((row["question_id"], row["part"], row["attempt"]) for row in journal_of(out))
        assert set(kept.values()) == {1} and len(kept) == 30 + 8  # of four questions, both games are asked about twice
        assert len(server.served) <= 36 + kills * concurrency and len(faults) > 3


TORN = ("empty", "half", "garbage", "null", "list", "folder", "wrong fields")


@pytest.mark.parametrize("kind", TORN)
@pytest.mark.parametrize("name", ["replies.jsonl", "mine.settings.json", "mine.jsonl"])
def test_damaged_files_of_the_judge(tmp_path, monkeypatch, capsys, name, kind):
    """Done again, or one line; never a traceback."""
    options = judge_files(tmp_path, "arenahard")
    with serving(lambda messages: ("[[A=B]]", [])) as server:
        monkeypatch.setattr("sys.argv", ["judge.py", *options, "--base_url", server.url])
        judge.main()
        path = next((tmp_path / "out").rglob(name))
        before = path.read_text()
        damage(path, kind)
        try:
            judge.main()
            assert path.read_text() == before or name != "mine.jsonl"
            assert all(
                g["score"] == "A=B"
                for row in rows_of(next((tmp_path / "out").rglob("mine.jsonl")))
                for g in row["games"]
            )
        except SystemExit as stop:
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert stop.code == 2 and len(errors) == 1 and str(tmp_path / "out") in errors[0]
            assert name != "mine.jsonl"


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "wrong fields":
        path.write_bytes(content.replace(b'"attempt"', b'"attempts"').replace(b'"judge"', b'"judges"'))
    else:
        half = content[: len(content) // 2]
        damaged = {"empty": b"", "half": half, "garbage": b"\xff\x00{", "null": b"null\n", "list": b"[1]\n"}
        path.write_bytes(damaged[kind])
