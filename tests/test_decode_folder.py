"""decode.py's folder follows the data; the answers come from a recorded generator."""

import json
import shutil
import sys
from pathlib import Path

import crashes
import pytest
from conftest import write_jsonl
from crashes import stops_of
from decode_world import TOO_LONG, TURNS, command, contents, write_prompts

import decode
import engines
from decode import main
from decoded import finished_responses
from simpo.engine.team import Lost
from simpo.engine.vllm import Response, noise_seed


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> str:
    return write_prompts(tmp_path_factory.mktemp("decode"))


@pytest.fixture
def recorded(monkeypatch):
    """Answers without an engine: a text of the request's own, every tenth of them cut."""

    monkeypatch.setattr(decode, "engine_settings", lambda *args: {"model": "none", "tensor_parallel_size": 1})
    monkeypatch.setattr(decode, "context_length", lambda settings: 200)
    monkeypatch.setattr(engines, "Answerer", Recorded)


class Recorded:
    def __init__(self, settings):
        pass

    def start(self) -> dict:
        return {"capacity": 3}

    def work(self, items) -> list:
        return [(number, self.answer(request)) for number, request in items]

    def answer(self, request) -> Response:
        reason = "length" if request.sampling["seed"] % 10 == 0 else "stop"
        return Response(request.key, f"answer {request.sampling['seed']}", reason, len(request.token_ids))


class Fragile(Recorded):
    def work(self, items) -> list:
        if any(request.key[1] == "no" for _, request in items):
            raise Lost("its process ended")
        return super().work(items)


def answer_prompts(monkeypatch, llama: str, folder: Path, prompts: list, *seeds: int, more: tuple = ()) -> dict:
    """Run decode.py on these prompts (all runs read one file); returns the prompts of each output file."""
    path = write_jsonl(folder.parent / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    monkeypatch.setattr(sys, "argv", [*command(llama, str(path), folder, *seeds)[1:], *more])
    main()
    return {
        path.name: [row["prompt"] for row in json.loads(path.read_text())] for path in sorted(folder.glob("output_*"))
    }


def test_the_folder_follows_the_data(monkeypatch, recorded, llama, tmp_path, capsys):
    """A prompt that has left the data leaves all outputs, new ones are answered, what changed is said; and nothing is
    answered twice."""
    out = tmp_path / "out"
    assert answer_prompts(monkeypatch, llama, out, ["a", "b", "leak"], 1, 2)["output_2.json"] == ["a", "b", "leak"]
    first = contents(out)
    capsys.readouterr()
    kept = answer_prompts(monkeypatch, llama, out, ["a", "b", "c"], 1)
    assert kept == {"output_1.json": ["a", "b", "c"], "output_2.json": ["a", "b"]}
    output = capsys.readouterr()
    assert "1 prompts of earlier runs are not in the data" in output.err and "'leak'" in output.err
    assert "output_2.json lacks 1 of the prompts: add --seed 2" in output.err
    assert "3 prompts x 1 seeds: 2 responses done before" in output.out

    monkeypatch.setattr(engines, "Answerer", None)  # the earlier answers come back
    assert answer_prompts(monkeypatch, llama, out, ["a", "b", "c"], 1, more=("--limit", "1")) == {
        "output_1.json": ["a"],
        "output_2.json": ["a"],
    }
    answer_prompts(monkeypatch, llama, out, ["a", "b", "leak"], 1, 2)
    assert contents(out) == first


def test_conversations_are_answered(monkeypatch, recorded, llama, tmp_path):
    out = tmp_path / "out"
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in TURNS]
    answer_prompts(monkeypatch, llama, out, [turns, "Hi"], 1, 2)
    rows = json.loads((out / "output_1.json").read_text())
    assert [row["prompt"] for row in rows] == ["Hi", turns]
    assert rows[1]["format_prompt"].count("<|eot_id|>") == 4 and "Be brief." in rows[1]["format_prompt"]
    assert rows[0]["generated_text"] == f"answer {noise_seed(1, 'Hi')}"
    monkeypatch.setattr(engines, "Answerer", None)  # they are known again
    answer_prompts(monkeypatch, llama, out, [turns, "Hi"], 1, 2)


def test_columns_travel_with_their_prompts(monkeypatch, recorded, fails, llama, tmp_path):
    """... as the data have them now, whatever they were when the prompt was answered."""
    out = tmp_path / "out"
    for kind in ("old", "new"):
        rows = [{"prompt": p, "kind": kind, "n": n, "other": 1} for n, p in enumerate("aba")]
        path = write_jsonl(tmp_path / "prompts.jsonl", rows)
        argv = command(llama, str(path), out, 1, 2)[1:]
        monkeypatch.setattr(sys, "argv", [*argv, "--keep_columns", "kind", "n"])
        main()
    rows = json.loads((out / "output_2.json").read_text())
    assert [(row["prompt"], row["kind"], row["n"], "other" in row) for row in rows] == [
        ("a", "new", 0, False),
        ("b", "new", 1, False),
    ]
    assert "has no column 'color'" in fails(main, *argv[1:], "--keep_columns", "color")
    assert "chosen is a field" in fails(main, *argv[1:], "--keep_columns", "chosen")


def test_prompts_that_the_template_refuses(monkeypatch, recorded, fails, llama, tmp_path, capsys):
    """... are listed and left out; only --retry_failed looks at them again."""
    template = "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('never') }}{% endif %}"
    more = ("--chat_template", template + "[{{ m.content }}]{% endfor %}")
    out = tmp_path / "out"
    assert answer_prompts(monkeypatch, llama, out, ["a", "no"], 1, more=more) == {"output_1.json": ["a"]}
    (row,) = json.loads((out / "skipped_prompts.json").read_text())
    assert row["prompt"] == "no" and "never" in row["reason"]
    assert "1 prompts skipped" in capsys.readouterr().err
    monkeypatch.setattr(decode, "format_prompts", None)
    answer_prompts(monkeypatch, llama, out, ["a", "no"], 1, more=more)
    with pytest.raises(TypeError):
        answer_prompts(monkeypatch, llama, out, ["a", "no"], 1, more=(*more, "--retry_failed"))
    answer_prompts(monkeypatch, llama, out, ["a"], 1, more=more)
    assert not (out / "skipped_prompts.json").exists()


def test_a_prompt_that_engines_are_lost_over(monkeypatch, recorded, llama, tmp_path, capsys):
    """... is listed and left out; only --retry_failed tries it again."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(engines, "Answerer", Fragile)
        assert answer_prompts(patch, llama, out, ["a", "no", "b"], 1) == {"output_1.json": ["a", "b"]}
    (row,) = json.loads((out / "skipped_prompts.json").read_text())
    assert row["prompt"] == "no" and row["reason"] == decode.LOST
    assert f"1 prompts skipped: {decode.LOST}" in capsys.readouterr().err
    assert answer_prompts(monkeypatch, llama, out, ["a", "no", "b"], 1) == {"output_1.json": ["a", "b"]}
    found = answer_prompts(monkeypatch, llama, out, ["a", "no", "b"], 1, more=("--retry_failed",))
    assert found == {"output_1.json": ["a", "b", "no"]}
    assert not (out / "skipped_prompts.json").exists()


def test_a_template_that_leaves_out_the_system_message(monkeypatch, recorded, llama, tmp_path):
    more = ("--chat_template", "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}")
    out = tmp_path / "out"
    assert answer_prompts(monkeypatch, llama, out, [TURNS, "Hi"], 1, more=more) == {"output_1.json": ["Hi"]}
    (row,) = json.loads((out / "skipped_prompts.json").read_text())
    assert "leaves out a message of role 'system'" in row["reason"]


def test_a_template_that_refuses_everything(monkeypatch, recorded, fails, llama, prompt_file, tmp_path):
    argv = command(llama, prompt_file, tmp_path / "out", 1)[2:]
    assert "every prompt is refused" in fails(main, *argv, "--chat_template", "{{ raise_exception('never') }}")


def test_cut_responses_are_counted(monkeypatch, recorded, llama, tmp_path, capsys):
    prompts = [f"p{i}" for i in range(30)]
    answer_prompts(monkeypatch, llama, tmp_path / "out", prompts, 1)
    cut = sum(noise_seed(1, prompt) % 10 == 0 for prompt in prompts)
    output = capsys.readouterr()
    assert f"30 responses, {cut} cut at their longest length" in output.out
    assert f"{cut} of 30 responses" in output.err and cut > 1


def test_damaged_journal_lines_are_answered_again(monkeypatch, recorded, llama, tmp_path):
    answer_prompts(monkeypatch, llama, tmp_path / "whole", ["a", "b"], 1)
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "whole", out)
    row = json.loads((out / "output_1.json").read_text())[0]
    (out / "output_1.json").unlink()
    lines = [row | {"generated_text": 3}, row | {"prompt": None}, [1], {"prompt": "b"}]
    write_jsonl(out / "journal" / "output_1.0.jsonl", lines)
    answer_prompts(monkeypatch, llama, out, ["a", "b"], 1)
    assert contents(out) == contents(tmp_path / "whole")


def test_dry_run(monkeypatch, recorded, fails, llama, tmp_path, capsys):
    answer_prompts(monkeypatch, llama, tmp_path / "out", ["a"], 1, more=("--dry_run",))
    assert "1 prompts (dry_run" in capsys.readouterr().out and not (tmp_path / "out").exists()
    write_jsonl(tmp_path / "data" / "train_prefs.jsonl", [{"prompt": "a"}])
    argv = command(llama, str(tmp_path / "data"), tmp_path / "out", 1)[2:]
    assert "test_prefs" in fails(main, *argv, "--split", "test_prefs", "--dry_run")


@pytest.mark.parametrize("again", [False, True])
def test_kills_at_every_file_operation(monkeypatch, recorded, llama, tmp_path, again):
    """... of a first run, and of one after the data have changed: the same command then ends as if nothing had been."""
    out, asked = tmp_path / "out", []

    class Counted(Recorded):
        def answer(self, request) -> Response:
            asked.append(request.key)
            return super().answer(request)

    monkeypatch.setattr(engines, "Answerer", Counted)
    prompts = ["a", "b", TOO_LONG]
    if again:
        answer_prompts(monkeypatch, llama, out, ["b", "leak", "c"], 1, 2)
        asked.clear()
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    monkeypatch.setattr(sys, "argv", command(llama, str(path), out, 1, 2)[1:])
    stops = stops_of(main, out, tmp_path / "stops")
    files = ("*.json", "journal/*.jsonl")
    whole, once = crashes.contents(out, *files), sorted(asked)
    assert len(whole) == (6 if again else 4) and len(stops) > 10
    for stop in stops:
        stop.restore()
        kept = [seed for seed in (1, 2) for row in finished_responses(out, [seed])[seed] if row in prompts]
        asked.clear()
        main()
        assert crashes.contents(out, *files) == whole, stop
        assert len(kept) + len(asked) == 4, stop  # nothing is asked twice
    assert len(once) == (2 if again else 4)
