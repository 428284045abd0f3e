"""judge.py against an endpoint that misbehaves: what is asked again, what is left out, what stops the run, what is
paid."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from judge_server import FOR_A_WHILE, KEY, serving
from judge_world import ARENA, judge_files, scores

import judge
from simpo.judge import responses, work


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def settings(folder: Path) -> dict:
    return json.loads(next((folder / "out").rglob("*settings.json")).read_text())


def test_what_is_over_after_a_while(judged, monkeypatch):
    """After everything that passes, all is judged, and each judgment was paid for once."""
    monkeypatch.setattr("simpo.judge.client.FIRST_WAIT", 0.01)
    many = [
        question | {"question_id": f"q{i}", "turns": [{"content": f"Ask {i}"}]}
        for i in range(8)
        for question in ARENA[:1]
    ]
    faults = [fault for passing in FOR_A_WHILE for fault in ("", passing)]
    with serving(lambda messages: ("[[A=B]]", []), faults=faults) as server:
        said, rows = judged("arenahard", server.url, "--concurrency", "1", questions=many)  # never two faults in a row
    assert scores(rows) == ["A=B"] * 16 and len(server.served) == 16
    assert set(server.refused) == set(FOR_A_WHILE)
    assert "no reply" not in said


@pytest.mark.parametrize(
    ("fault", "most", "words"),
    [
        ("page", 1, "answers with a page instead of JSON (<!DOCTYPE html>"),
        ("404", 1, "has no judge 'gpt-4-1106-preview' (status 404"),
        ("no such path", 1, "has no judge"),
        ("401", 1, "refuses the key in OPENAI_API_KEY (status 401)"),
        ("quota", 1, "has no quota left"),
        ("moved", 1, "goes on at /login"),
        ("no choices", 9, "a reply without choices"),
        ("null content", 9, "an empty reply"),
        ("cut off", 9, "a reply that is no JSON"),
        ("400", 3, "the last 3 requests got no reply, the first: status 400: planted 400"),
        ("filter", 6, "the last 6 requests got no reply, the first: content filter"),
    ],
)
def test_what_no_request_gets_past(fails, monkeypatch, tmp_path, fault, most, words):
    """One line, after few requests, and nothing written."""
    monkeypatch.setattr("simpo.judge.client.FIRST_WAIT", 0.0)
    with serving(lambda messages: ("[[A=B]]", []), fault_of=lambda request: fault) as server:
        message = fails(judge.main, *judge_files(tmp_path, "arenahard"), "--base_url", server.url)
        assert words in message and server.url in message
        assert len(server.refused) == most
    assert not list((tmp_path / "out").rglob("mine.jsonl"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 50])
def test_the_first_ones_asked_are_from_all_over(count):
    tasks = list(range(count))
    order = work.spread(tasks)
    assert sorted(order) == tasks and order[:3] == [n * count // min(3, count) for n in range(min(3, count))]


def test_address_without_v1(fails, tmp_path):
    with serving(lambda messages: ("[[A=B]]", []), fault_of=lambda request: "no such path") as server:
        address = server.url.removesuffix("/v1")
        message = fails(judge.main, *judge_files(tmp_path, "arenahard"), "--base_url", address)
    assert f"such addresses end in /v1: {address}/v1" in message


@pytest.mark.parametrize(
    "fault",
    ["filter", "filter in 200", "filter, no message", "declined", "flagged", "too long", "500", "no choices"],
)
@pytest.mark.parametrize("refused", ["Ask 0", "Ask 1"])
def test_one_question_blocks_no_other(judged, monkeypatch, fault, refused):
    """It is listed with the reason, left without a verdict, and asked again on request only."""
    monkeypatch.setattr("simpo.judge.client.FIRST_WAIT", 0.0)

    def fault_of(request: dict) -> str:
        return fault if refused in request["messages"][-1]["content"] else ""

    with serving(lambda messages: ("[[A>B]]", []), fault_of=fault_of) as server:
        said, rows = judged("arenahard", server.url)
        assert len(server.served) == 4 and "2 of 6 judgments got no reply" in said
        place = int(refused[-1])
        assert [row["games"][0]["score"] for row in rows].index(None) == place and scores(rows).count("A>B") == 4
        assert rows[place]["games"][0]["failed"] in said
        asked = len(server.refused)
        assert ("content filter" in said and asked == 2) or not fault.startswith("filter")  # for ever: asked once each
        judged("arenahard", server.url)
        assert (len(server.served), len(server.refused)) == (4, asked)
        server.fault_of = lambda request: ""
        said, rows = judged("arenahard", server.url, "--retry_failed")
        assert len(server.served) == 6 and scores(rows) == ["A>B"] * 6 and "no reply" not in said


def test_parameters_that_the_judge_does_not_take(judged, tmp_path, monkeypatch):
    refusals = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported.",
    }
    monkeypatch.setitem(judge_faults(), "max_tokens", (400, {"error": {"message": refusals["max_tokens"]}}))
    monkeypatch.setitem(judge_faults(), "temperature", (400, {"error": {"message": refusals["temperature"]}}))

    def fault_of(request: dict) -> str:
        return next((name for name in refusals if name in request), "")

    with serving(lambda messages: ("Rating: [[7]]", []), fault_of=fault_of) as server:
        said, rows = judged("mt-bench", server.url, "--judge", "o3-mini")
        assert [row["score"] for row in rows] == [7.0] * 6
        assert "o3-mini does not take max_tokens" in said and "o3-mini does not take temperature" in said
        assert settings(tmp_path)["parameters"] == {"temperature": 0, "max_tokens": 2048}
        assert settings(tmp_path)["sent"] == {"max_completion_tokens": 2048}
        assert all(request["request"]["max_completion_tokens"] == 2048 for request in server.served)
        assert sorted(server.refused) == ["max_tokens", "temperature"]  # found out once


def judge_faults() -> dict:
    from judge_server import FAULTS

    return FAULTS


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "System role not supported"),
        (500, "Jinja Exception: System role not supported at row 1"),
        (400, "Developer instruction is not enabled for models/gemma-3-27b-it"),
        (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
    ],
)
def test_a_judge_without_system_messages(judged, monkeypatch, status, words):
    """Found out once and said once; the benchmark's system prompt then begins the user's message."""
    monkeypatch.setitem(judge_faults(), "system", (status, {"error": {"message": words}}))

    def fault_of(request: dict) -> str:
        return "system" if request["messages"][0]["role"] == "system" else ""

    with serving(lambda messages: ("[[A>B]]", []), fault_of=fault_of) as server:
        said, rows = judged("arenahard", server.url)
    assert scores(rows) == ["A>B"] * 6 and len(server.served) == 6
    assert server.refused == ["system"] and said.count("takes no system message") == 1
    assert {request["messages"][0]["content"][:11] for request in server.served} == {"Judge.\n\nAsk"}
    assert {len(request["messages"]) for request in server.served} == {1}


def test_the_key_is_shown_nowhere(judged, fails, tmp_path, monkeypatch):
    """Even where the server repeats it."""
    monkeypatch.setitem(judge_faults(), "echo", (400, {"error": {"message": f"I do not like {KEY} here"}}))
    with serving(lambda messages: ("[[A>B]]", []), faults=["", "echo"]) as server:
        said, rows = judged("arenahard", server.url)
    assert "I do not like *** here" in said and scores(rows).count("A>B") == 5
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    message = fails(judge.main, *judge_files(tmp_path, "arenahard"), "--base_url", f"https://me:{KEY}@host/v1")
    assert "base_url" in message and KEY not in message


def test_judge_args(judged, fails, tmp_path):
    given = '{"temperature": null, "max_tokens": 9, "reasoning_effort": "low"}'
    with serving(lambda messages: ("[[3]]", [])) as server:
        judged("mt-bench", server.url, "--judge_args", given)
        sent = server.served[0]["request"]
        assert sent["max_tokens"] == 9 and sent["reasoning_effort"] == "low" and "temperature" not in sent
        message = fails(judge.main, *judge_files(tmp_path, "mt-bench"), "--base_url", server.url)
        assert "holds output of other settings (parameters was" in message
    for wrong, words in (
        ('{"model": "x"}', "model is not for this option"),
        ("[1]", "judge_args"),
        ("{", "judge_args"),
    ):
        message = fails(judge.main, *judge_files(tmp_path, "mt-bench"), "--judge_args", wrong)
        assert words in message


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "2"}, 2, 2),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25, 0.25),
        ({"retry-after": "soon"}, None, None),
        ({}, None, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers, least, most):
    wait = responses.wait_asked_for(httpx.Headers(headers))
    assert wait is None if least is None else least <= wait <= most
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1000))
    assert 0 < responses.wait_asked_for(httpx.Headers({"retry-after": soon})) <= 1000


def test_both_names_of_the_limit(judged, monkeypatch):
    """The user's own name for it is the only one sent; what the benchmark sends gives way."""
    with serving(lambda messages: ("[[3]]", [])) as server:
        judged("mt-bench", server.url, "--judge_args", '{"max_completion_tokens": 99}')
        sent = server.served[0]["request"]
    assert sent["max_completion_tokens"] == 99 and "max_tokens" not in sent
