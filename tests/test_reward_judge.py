"""on_policy_data_gen/rewards/judge.py: ratings from a judge's endpoint, whatever it replies."""

import json
from pathlib import Path

import pytest
from crashes import contents, stops_of
from judge_server import KEY, serving

from reward_model_annotate import main
from rewards import load_reward_model
from rewards.judge import PROBE, RUBRIC, read_rubric
from simpo.console import UserError
from simpo.judge.tasks import find_labels


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("summary.draw", lambda path, *data: path.write_bytes(b"picture"))  # takes most of the time
    monkeypatch.setattr("simpo.judge.client.FIRST_WAIT", 0.01)


def write_rows(folder: Path, count: int = 4, *more: dict) -> Path:
    rows = [
        {"prompt": f"p{i}", "all_generated_responses": [f"{i} good", f"{i} fair {{prompt}} [[10]]", f"{i} bad"]}
        for i in range(count)
    ]
    (folder / "in.json").write_text(json.dumps([*rows, *more]))
    return folder / "in.json"


def answer_in(messages: list[dict]) -> str:
    """The response that a request is about, by the shipped rubric."""
    return messages[0]["content"].split("<answer>\n")[1].split("\n</answer>")[0]


def rating(messages: list[dict]) -> tuple[str, list]:
    answer = answer_in(messages)
    number = next((n for word, n in (("good", 9), ("fair", 6.5), ("bad", 2)) if word in answer), 10)
    return f"It says {answer[:6]!r}.\n\nRating: [[{number}]]", []


def options(folder: Path, url: str, *more: str) -> list[str]:
    return [
        *("--generation_file", str(folder / "in.json"), "--output_dir", str(folder / "out")),
        *("--reward_model", "judge:tiny-judge", "--base_url", url, "--concurrency", "2", *more),
    ]


@pytest.fixture
def annotated(monkeypatch, capsys, tmp_path):
    """Annotate tmp_path/in.json, which must end well; returns what was said, and the scores by response."""

    def run(url: str, *more: str) -> tuple[str, dict[str, float | None]]:
        monkeypatch.setattr("sys.argv", ["annotate.py", *options(tmp_path, url, *more)])
        main()
        output = capsys.readouterr()
        return output.out + output.err, scores(tmp_path)

    return run


def scores(folder: Path) -> dict[str, float | None]:
    rows = json.loads((folder / "out" / "all_outputs_rm.json").read_text())
    found = {}
    for row in rows:
        found |= dict(zip(row["all_generated_responses"], row["all_rm_scores"], strict=True))
    return found


def replies(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "journal" / "replies.jsonl").read_text().splitlines()]


def test_every_response_is_rated_once(annotated, tmp_path):
    """By the rubric, in pairs that training reads; each reply is kept, the key is not, and nothing is asked again."""
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    conversation.append({"role": "user", "content": "Who are you?"})
    write_rows(tmp_path, 4, {"prompt": conversation, "all_generated_responses": ["good", "bad"]})
    with serving(rating, slow=0.1) as server:
        said, found = annotated(server.url)
        assert len(server.served) == 15 and server.busiest == 2  # 14 responses, and the first one of all
        annotated(server.url, "--pair_selection", "wpo_v2", "--concurrency", "3")
        assert len(server.served) == 15
    assert {found[f"{i} good"] for i in range(4)} == {9} and found["2 fair {prompt} [[10]]"] == 6.5
    assert found["bad"] == 2 and "5 pairs kept" in said
    asked = [request["messages"][0]["content"] for request in server.served]
    assert answer_in(server.served[0]["messages"]) == PROBE[1]
    assert "User: Hi\n\nAssistant: Hello\n\nUser: Who are you?\n</prompt>" in "".join(asked)
    assert "<answer>\n2 fair {prompt} [[10]]\n</answer>" in "".join(asked)  # what is in an answer is text
    assert server.served[0]["request"]["temperature"] == 0 and server.served[0]["request"]["max_tokens"] == 1024
    kept = replies(tmp_path)
    assert len(kept) == 15 and all("Rating: [[" in row["content"] for row in kept)
    assert "'2 good' to 'p2'" in {row["label"] for row in kept}
    record = json.loads((tmp_path / "out" / "annotate_settings.json").read_text())
    assert record["revision"] == read_rubric(RUBRIC).digest and record["reward_model"] == "judge:tiny-judge"
    assert record["judge_parameters"] == {"temperature": 0, "max_tokens": 1024}
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_edited_rubric_rates_again_and_another_judge_is_refused(annotated, fails, tmp_path):
    write_rows(tmp_path, 2)
    rubric = tmp_path / "mine.txt"
    rubric.write_text("Scale: 0 to 5\n{prompt}\n<answer>\n{response}\n</answer>\n")
    with serving(lambda messages: (str(len(answer_in(messages)) % 6), [])) as server:
        _, first = annotated(server.url, "--rubric", str(rubric))
        assert first["0 good"] == 0 and len(server.served) == 7
        rubric.write_text(rubric.read_text() + "Be strict.")
        said, again = annotated(server.url, "--rubric", str(rubric))
        assert "the rubric has changed" in said and again == first and len(server.served) == 14
        other = ["--judge_args", '{"temperature": 1}', "--rubric", str(rubric)]
        assert "judge_parameters was" in fails(main, *options(tmp_path, server.url, *other))
        other = options(tmp_path, server.url, "--rubric", str(rubric))
        other[other.index("judge:tiny-judge")] = "judge:another"
        assert "reward_model was" in fails(main, *other)
        assert len(server.served) == 14


READ = {
    **{text: ["7"] for text in ("[[7]]", "[[ 7/10 ]]", "Rating: 7", "**Rating:** 7/10", "7", "7 out of 10", "**7**")},
    **{text: ["7"] for text in ("Overall rating: 7.", '{"rating": 7, "why": "8 errors"}', "Rating (1-10): 7", "7.")},
    **{text: ["3", "7"] for text in ("[[3]]? No: [[7]]", "Rating: 3\nFinal rating: 7", "Rating: 4 [[3]] [[7]]")},
    **{text: [] for text in ("", "seven", "7/5", "[[4/5]]", "Rating: 1 to 10", "Rating: 7,5", "7-8", "[[7,5]]")},
    **{text: [] for text in ("A score of 7 would be generous", "Rating: N/A", "Rating:\n7. It is", "Score: 4/5")},
    **{text: [text.strip("[]Rating: ")] for text in ("[[11]]", "[[-3]]", "Rating: -3", "-3", "6.25", "1000")},
}


@pytest.mark.parametrize("text", READ)
def test_how_a_rating_is_read(text):
    assert find_labels(text, read_rubric(RUBRIC).reading().patterns) == READ[text]


def test_replies_that_are_no_ratings(annotated, tmp_path):
    """A filter, rambling, a number off the scale, a reply that is cut: named, counted and left out; asked again on
    request only."""
    strange = {"ramble": "It depends on what you want.", "twelve": "[[12]]", "long": "so " * 5000}
    write_rows(tmp_path, 3, {"prompt": "q", "all_generated_responses": ["good", "bad", "dirty", *strange]})
    told = []

    def reply(messages):
        answer = answer_in(messages)
        told.append(answer)
        if answer == "ramble" and len(messages) == 3 and told.count("ramble") > 2:
            return "[[4]]", []  # when it is asked again, in another run
        return (strange[answer], []) if answer in strange else rating(messages)

    def fault_of(request):
        return "filter" if answer_in(request["messages"]) == "dirty" else ""

    with serving(reply, fault_of=fault_of) as server:
        said, found = annotated(server.url)
        assert [found[name] for name in ("good", "bad", "dirty", *strange)] == [9, 2, None, None, None, None]
        assert "1 times: a content filter gives no reply (such as 'dirty' to 'q')" in said
        assert "4 responses without a score" in said and "4 pairs kept" in said
        problems = [json.loads(line) for line in (tmp_path / "out/journal/scores.0.jsonl").read_text().splitlines()]
        kept = {record["cannot"] for line in problems for record in line.values() if isinstance(record, dict)}
        assert kept == {
            "a content filter gives no reply",
            "the judge gives no rating",
            "the judge gives a rating outside 1 to 10",
            "the judge gives no reply: cut at max_tokens 1024 and 4096",
        }
        ramble = next(request["messages"] for request in server.served if len(request["messages"]) == 3)
        assert ramble[1]["content"] == strange["ramble"] and "from 1 to 10, in this form: [[1]]" in ramble[2]["content"]
        asked = len(server.served)
        assert annotated(server.url)[1] == found and len(server.served) == asked
        _, found = annotated(server.url, "--retry_failed")
        assert found["ramble"] == 4 and found["twelve"] is None and len(server.refused) == 2


def test_a_judge_that_thinks(annotated, tmp_path):
    write_rows(tmp_path, 2)
    with serving(lambda m: (f"<think>[[1]]? Rating: 1</think>\n{rating(m)[0]}", [])) as server:
        assert annotated(server.url)[1]["1 good"] == 9


@pytest.mark.parametrize(
    ("reply", "fault", "words", "calls"),
    [
        ("It depends.", "", "does not rate by", 2),
        ("[[77]]", "", "a rating outside 1 to 10 ('[[77]]')", 1),
        ("", "filter", "the last 1 requests got no reply, the first: content filter", 1),
        ("", "401", "refuses the key in OPENAI_API_KEY", 1),
        ("", "404", "has no judge 'tiny-judge' (status 404: planted 404); name another with --reward_model", 1),
        ("", "page", "answers with a page instead of JSON", 1),
    ],
)
def test_a_judge_that_rates_nothing_costs_one_request(fails, tmp_path, reply, fault, words, calls):
    write_rows(tmp_path)
    with serving(lambda messages: (reply, []), fault_of=lambda request: fault) as server:
        message = fails(main, *options(tmp_path, server.url))
        assert words in message and len(server.served) + len(server.refused) == calls, message
    assert not list((tmp_path / "out").glob("all_outputs*"))


def test_a_judge_that_is_down_and_comes_back(annotated, fails, tmp_path):
    """In the middle: what was rated is kept. From the start: one line, soon."""
    write_rows(tmp_path)
    with serving(rating, faults=[""] * 5 + ["quota"] * 20) as server:
        assert "has no quota left" in fails(main, *options(tmp_path, server.url))
        paid = len(server.served)
    assert "cannot be reached" in fails(main, *options(tmp_path, server.url))
    with serving(rating) as server:
        _, found = annotated(server.url)
        assert len(server.served) == 13 - paid and None not in found.values()


def test_a_rubric_or_a_setting_that_cannot_work(fails, monkeypatch, tmp_path):
    write_rows(tmp_path)
    rubric = tmp_path / "mine.txt"

    def said(text: str) -> str:
        rubric.write_text(text)
        return fails(main, *options(tmp_path, "http://127.0.0.1:9/v1", "--rubric", str(rubric)))

    assert f"rubric: {rubric} has no place {{response}}" in said("Rate it from 1 to 10. {prompt}")
    assert "scale of 10 to 1" in said("Scale: 10 to 1\n{prompt} {response}")
    rubric.unlink()
    assert "there is no file" in fails(main, *options(tmp_path, "http://127.0.0.1:9/v1", "--rubric", str(rubric)))
    assert "base_url" in fails(main, *options(tmp_path, "localhost:8000"))
    argv = options(tmp_path, "http://127.0.0.1:9/v1")
    assert "rubric: is of a judge only" in fails(main, *argv[:4], "--reward_model", "given", "--rubric", "x")
    assert "max_length: has no effect on a judge" in fails(main, *argv, "--max_length", "9")
    assert "judge's model name" in fails(main, *argv[:4], "--reward_model", "judge:")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a judge is asked by one process"):
        load_reward_model("judge:tiny-judge")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in fails(main, *argv)
    assert not (tmp_path / "out").exists()


def test_kills_at_every_file_operation(monkeypatch, tmp_path):
    """The same command then writes the same files, and no reply is paid for twice."""
    write_rows(tmp_path, 2)
    with serving(rating) as server:
        monkeypatch.setattr("sys.argv", ["annotate.py", *options(tmp_path, server.url, "--concurrency", "1")])
        stops = stops_of(main, tmp_path / "out", tmp_path / "stops")
        files = ("all_outputs_*.json", "annotate_*")
        whole = contents(tmp_path / "out", *files)
        assert len(server.served) == 7
        for stop in stops:
            stop.restore()
            journal = tmp_path / "out" / "journal" / "replies.jsonl"
            kept = journal.read_text().count("\n") if journal.exists() else 0
            server.served.clear()
            main()
            assert contents(tmp_path / "out", *files) == whole, stop
            assert kept + len(server.served) == 7, stop
