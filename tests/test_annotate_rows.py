"""What reward_model_annotate.py reads, and the pairs it makes: rows in all their forms, scores that are there,
thoughts, conversations, off-policy responses."""

import json
from pathlib import Path

import pytest
import torch
from annotate_world import answers, asked, read, run, write_candidates, write_rows
from conftest import write_jsonl
from datasets import Dataset

from reward_model_annotate import main
from rewards import load_reward_model
from simpo.data.load import get_datasets


def test_rows_and_responses_left_out(monkeypatch, tmp_path, armorm, capsys):
    rows = [(f"p{i}", answers("a", "b c")) for i in range(3)]
    bad = [("", answers("a", "b")), ("q", answers("a")), ("\ud800", answers("a", "b")), {"prompt": "r"}]
    bad += [{"prompt": "u", "all_generated_responses": None}]
    odd = [("s", answers("a", None, "b c", "\udfff")), ("p0", answers("d e f", "g"))]
    path = write_rows(tmp_path / "in.json", *rows, *bad, *odd)
    run(monkeypatch, "--generation_file", path, "--reward_model", armorm, "--output_dir", tmp_path / "out")
    scored = {row["prompt"]: row["all_generated_responses"] for row in read(tmp_path / "out", "all_outputs_rm.json")}
    assert scored == {"p0": ["a", "b c", "d e f", "g"], "p1": ["a", "b c"], "p2": ["a", "b c"], "s": ["a", "b c"]}
    warnings = capsys.readouterr().err
    assert "5 rows left out (row 3: the prompt is empty; row 4: all_generated_responses must" in warnings
    assert "1 rows repeat a prompt" in warnings


THINKING = ["<think>Lyon?\n</think>\n\nParis.", "Lyon, I think.", "<think>It may be Nice, or it may"]


@pytest.mark.parametrize(
    ("thinking", "scored"),
    [("strip", ["Paris.", "Lyon, I think.", ""]), ("keep", THINKING)],
)
def test_thinking(monkeypatch, tmp_path, armorm, capsys, thinking, scored):
    """What follows the thoughts is scored, or the whole; pairs always hold whole responses."""
    rows = [(f"p{i}", answers(*THINKING)) for i in range(3)]
    path = write_rows(tmp_path / "in.json", *rows)
    out = tmp_path / "out"
    run(monkeypatch, "--generation_file", path, "--reward_model", armorm, "--output_dir", out, "--thinking", thinking)
    model = load_reward_model(armorm)
    model.load(torch.device("cpu"), torch.float32)
    row = read(out, "all_outputs_rm.json")[0]
    assert row["all_generated_responses"] == THINKING
    assert row["all_rm_scores"] == pytest.approx(model.score("p0", scored), abs=1e-4)
    pair = read(out, "all_outputs_bin.json")[0]
    assert {pair[side][-1]["content"] for side in ("chosen", "rejected")} < set(THINKING)
    report = capsys.readouterr()
    assert "6 of 9 responses begin with thoughts" in report.err
    assert "3 responses cut inside their thoughts" in report.out
    assert "3 of 9 responses (33 %) were cut" in report.err


def test_thinking_refused(fails, tmp_path, armorm):
    path = write_rows(tmp_path / "in.json", ("p0", answers(*THINKING)))
    argv = ["--generation_file", str(path), "--reward_model", armorm, "--output_dir", str(tmp_path / "out")]
    error = fails(main, *argv, "--thinking", "fail")
    assert "'p0'" in error and "--thinking strip" in error and not (tmp_path / "out").exists()


def test_thoughts_that_the_template_opened(monkeypatch, tmp_path, armorm, capsys):
    """Closing tags alone: the prompt opened the block, so a response without one never came out of it."""
    responses = ["Lyon?</think>Paris.", "Hm, I know it.</think>Paris.", "Too long, cut off while thinking about"]
    path = write_rows(tmp_path / "in.json", *[(f"p{i}", answers(*responses)) for i in range(3)])
    run(monkeypatch, "--generation_file", path, "--reward_model", armorm, "--output_dir", tmp_path / "out")
    scores = read(tmp_path / "out", "all_outputs_rm.json")[0]["all_rm_scores"]
    assert scores[0] == scores[1] != scores[2]
    assert "3 responses cut inside their thoughts" in capsys.readouterr().out


def test_conversations_become_pairs_that_training_reads(monkeypatch, tmp_path, armorm):
    """Beside prompts that are texts; and off-policy answers find their conversation."""
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who are you?"},
    ]
    rows = [(f"p{i}", answers("a", "b c")) for i in range(4)] + [(conversation, answers("A model.", "No."))]
    extra = {side: [*conversation, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    out = tmp_path / "out"
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--reward_model", armorm]
    run(monkeypatch, *argv, "--output_dir", out, "--extra_responses", write_rows(tmp_path / "extra.json", extra))
    pair = read(out, "all_outputs_bin.json")[-1]
    assert pair["prompt"] == conversation == pair["chosen"][:-1] == pair["rejected"][:-1]
    assert pair["all_generated_responses"] == ["A model.", "No.", "chosen", "rejected"]
    splits = get_datasets({str(out / "datasets"): 1.0})
    rows = {json.dumps(row["prompt"]): row for split in splits.values() for row in split}
    assert len(rows) == 5
    assert rows[json.dumps(conversation)]["chosen"] == pair["chosen"]
    assert rows[json.dumps([{"role": "user", "content": "p0"}])]["chosen"][0] == {"role": "user", "content": "p0"}


def test_test_file_and_extra_responses(monkeypatch, tmp_path, armorm, candidates, capsys):
    held_out = write_candidates(tmp_path / "test.json", 5, seed=1)
    rows, train = json.loads(held_out.read_text()), json.loads(candidates.read_text())
    held_out.write_text(json.dumps([*rows, train[3]]))
    extra = [
        {"prompt": train[0]["prompt"], "all_generated_responses": ["off-policy"]},
        {"prompt": rows[0]["prompt"], "chosen": "good", "rejected": "bad"},
        {
            "prompt": train[1]["prompt"],
            "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "fine"}],
            "rejected": [{"role": "assistant", "content": train[1]["all_generated_responses"][0]}],
        },
        {"prompt": "of something else", "all_generated_responses": ["unused"]},
    ]
    (tmp_path / "extra.jsonl").write_text("".join(json.dumps(row) + "\n" for row in extra))
    out = tmp_path / "out"
    argv = ["--generation_file", candidates, "--test_generation_file", held_out, "--output_dir", out]
    run(monkeypatch, *argv, "--reward_model", armorm, "--extra_responses", tmp_path / "extra.jsonl")
    scored = {row["prompt"]: row for row in read(out, "all_outputs_rm.json") + read(out, "all_outputs_rm_test.json")}
    assert scored[train[0]["prompt"]]["all_generated_responses"][4:] == ["off-policy"]
    assert scored[train[1]["prompt"]]["all_generated_responses"][4:] == ["fine"]  # the other one is there already
    assert scored[rows[0]["prompt"]]["all_generated_responses"][4:] == ["good", "bad"]
    assert len(scored[train[0]["prompt"]]["all_rm_scores"]) == 5
    splits = get_datasets({str(out / "datasets"): 1.0})
    assert {asked(row) for row in splits["test"]} == {row["prompt"] for row in [*rows, train[3]]}
    assert len(splits["train"]) == 23 and train[3]["prompt"] not in {asked(row) for row in splits["train"]}
    report = capsys.readouterr().out
    assert "1 train prompts dropped: also in the test file" in report and "4 extra responses added" in report


def test_scores_that_are_there_already(monkeypatch, tmp_path, capsys):
    """As all_rm_scores, or as score_chosen and score_rejected; nothing is loaded."""
    side = {name: [{"role": "user", "content": "q"}, {"role": "assistant", "content": name}] for name in ("yes", "no")}
    rows = [
        ("p0", answers("a", "b", "c", all_rm_scores=[1, 3.5, None])),
        ("p1", answers("a", "b", all_rm_scores=[2, 0])),
    ]
    rows += [{"prompt": "q", "chosen": side["yes"], "rejected": side["no"], "score_chosen": 9.0, "score_rejected": 9.5}]
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--output_dir", tmp_path / "out"]
    run(monkeypatch, *argv, "--reward_model", "given")
    assert [row["all_rm_scores"] for row in read(tmp_path / "out", "all_outputs_rm.json")] == [
        [1, 3.5, None],
        [2, 0],
        [9.0, 9.5],
    ]
    chosen = [row["chosen"][-1]["content"] for row in read(tmp_path / "out", "all_outputs_bin.json")]
    assert chosen == ["b", "a", "no"]
    assert "its row has no score for it" in capsys.readouterr().err


def completion(text: str, **scores: object) -> dict:
    return {"model": "m", "response": text, "critique": "Fine.", "annotations": {"honesty": {"Rating": "4"}}, **scores}


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "u",
    "models": ["m", "m", "m"],
    "completions": [
        completion("low", overall_score=3.0, **{"fine-grained_score": 4.75}),
        completion("high", overall_score=8.5, **{"fine-grained_score": 2.0}),
        completion("none", overall_score=None, **{"fine-grained_score": 5.0}),
    ],
    "correct_answers": ["None"],
}
FINE_GRAINED = {
    "instruction": "v",
    "completions": [completion("a", **{"fine-grained_score": 2.5}), completion("b", **{"fine-grained_score": 3})],
}
BINARIZED = {  # of the hub's sets with all responses and the pair they became
    "prompt_id": "x",
    "prompt": "w",
    "all_generated_responses": ["a", "b", "c"],
    "all_rm_scores": [0.11, 0.13, 0.12],
    "chosen": [{"role": "user", "content": "w"}, {"role": "assistant", "content": "b"}],
    "rejected": [{"role": "user", "content": "w"}, {"role": "assistant", "content": "a"}],
}


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_the_forms_of_public_sets_with_scores(monkeypatch, tmp_path, capsys, form):
    """As a file, and as splits of a folder, one of which is off-policy."""
    rows = [ULTRAFEEDBACK, FINE_GRAINED] if form == "parquet" else [ULTRAFEEDBACK, FINE_GRAINED, BINARIZED]
    argv = ["--output_dir", tmp_path / "out", "--reward_model", "given"]
    if form == "folder":
        extra = {"prompt": "w", "all_generated_responses": ["d", "a"], "all_rm_scores": [0.2, 9]}
        write_jsonl(tmp_path / "data" / "train.jsonl", rows)
        write_jsonl(tmp_path / "data" / "off_1.jsonl", [extra])
        write_jsonl(tmp_path / "data" / "off_2.jsonl", [{"prompt": "v", "chosen": "c", "rejected": "a"}])
        argv += ["--extra_responses", f"{tmp_path}/data:off_1+off_2", "--generation_file", f"{tmp_path}/data:train"]
    elif form == "parquet":
        Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
        argv += ["--generation_file", tmp_path / "in.parquet"]
    else:
        argv += ["--generation_file", write_jsonl(tmp_path / "in.jsonl", rows)]
    run(monkeypatch, *argv)
    found = {row["prompt"]: row for row in read(tmp_path / "out", "all_outputs_rm.json")}
    assert found["u"]["all_generated_responses"] == ["low", "high", "none"]
    assert found["u"]["all_rm_scores"] == [3.0, 8.5, None] and "completions" not in found["u"]
    assert found["v"]["all_rm_scores"][:2] == [2.5, 3]
    pairs = {row["prompt"]: row["chosen"][-1]["content"] for row in read(tmp_path / "out", "all_outputs_bin.json")}
    assert pairs["u"] == "high" and pairs["v"] == "b"
    if form == "folder":
        assert found["w"]["all_generated_responses"] == ["a", "b", "c", "d"]
        assert found["w"]["all_rm_scores"] == [0.11, 0.13, 0.12, 0.2] and pairs["w"] == "d"
        assert found["v"]["all_generated_responses"] == ["a", "b", "c"] and found["v"]["all_rm_scores"][2] is None


def test_scores_that_cannot_be_used(monkeypatch, fails, tmp_path, capsys):
    rows = [("p", answers("a", "b")), {"prompt": "q", "chosen": "yes", "rejected": "no"}]
    argv = ["--output_dir", str(tmp_path / "out"), "--reward_model", "given", "--generation_file"]
    error = fails(main, *argv, str(write_rows(tmp_path / "in.json", *rows)))
    assert "the rows have no scores: all_rm_scores beside all_generated_responses, score_chosen" in error
    assert not (tmp_path / "out").exists()
    assert "in.parquet cannot be read" in fails(main, *argv, str(broken(tmp_path / "in.parquet")))
    assert "(of a dataset, name a split: nowhere.json:train)" in fails(main, *argv, "nowhere.json")
    assert "is a folder: name one of its splits" in fails(main, *argv, str(tmp_path))
    assert "test" in fails(main, *argv, f"{write_jsonl(tmp_path / 'd' / 'train.jsonl', [BINARIZED]).parent}:test")
    good = [(f"p{i}", answers("a", "b", all_rm_scores=[1, 2])) for i in range(2)]
    bad = [("q", answers("a", "b", "c", all_rm_scores=[1, 2])), ("r", answers("a", "b", all_rm_scores=["1", None]))]
    run(monkeypatch, *argv, write_rows(tmp_path / "in.json", *good, *bad))
    said = capsys.readouterr()
    assert "1 rows left out (row 2: there are 2 scores of 3 responses)" in said.err
    assert "2 responses without a score" in said.out and "2 pairs kept" in said.out


def broken(path: Path) -> Path:
    path.write_bytes(b"PAR1, or not")
    return path


def test_several_disjoint_pairs_of_a_prompt(monkeypatch, tmp_path, capsys):
    """Best with worst, second best with second worst; all of a prompt's pairs in one split."""
    rows = [(f"p{i}", answers(*"abcde", all_rm_scores=[3, 1, 5, 2, 4])) for i in range(4)]
    rows += [
        ("tied", answers(*"abcd", all_rm_scores=[1, 2, 2, 3])),
        ("close", answers("a", "b", all_rm_scores=[1, 1.2])),
    ]
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--reward_model", "given"]
    run(monkeypatch, *argv, "--output_dir", tmp_path / "out", "--pairs_per_prompt", 3, "--min_margin", 1.5)
    pairs = read(tmp_path / "out", "all_outputs_bin.json")
    found = [(pair["prompt"], pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]) for pair in pairs]
    assert found[:2] == [("p0", "c", "b"), ("p0", "e", "d")] and found[-1] == ("tied", "d", "a") and len(found) == 9
    splits = get_datasets({str(tmp_path / "out" / "datasets"): 1.0})
    assert not {asked(row) for row in splits["test"]} & {asked(row) for row in splits["train"]}


def test_chosen_much_longer_than_rejected(monkeypatch, tmp_path, capsys):
    rows = [(f"p{i}", answers("long " * 20, "short", all_rm_scores=[1, 0])) for i in range(4)]
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--reward_model", "given"]
    run(monkeypatch, *argv, "--output_dir", tmp_path / "out")
    assert "the chosen responses are longer than the rejected ones (100 against 5" in capsys.readouterr().err


def test_cut_responses_are_counted(monkeypatch, tmp_path, armorm, capsys):
    rows = [(f"p{i}", answers("a", "b c", finish_reasons=["stop", "length" if i < 2 else "stop"])) for i in range(4)]
    path = write_rows(tmp_path / "in.json", *rows)
    run(monkeypatch, "--generation_file", path, "--reward_model", armorm, "--output_dir", tmp_path / "out")
    report = capsys.readouterr()
    assert "2 responses known to be cut at their longest length" in report.out
    assert "2 of 8 responses (25 %) were cut" in report.err and "--drop_truncated" in report.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", ["not JSON"]),
        ("[]", ["no rows"]),
        ('[{"prompt": "a"}]', ["row 0", "all_generated_responses"]),
        ('[{"prompt": "a", "all_generated_responses": ["x"]}]', ["row 0", "two texts"]),
        ('[{"prompt": "a", "all_generated_responses": ["x", null]}]', ["row 0", "two texts"]),
        ('[{"prompt": "", "all_generated_responses": ["x", "y"]}]', ["row 0", "empty"]),
    ],
)
def test_bad_generation_file(fails, tmp_path, content, words):
    (tmp_path / "in.json").write_text(content)
    error = fails(main, "--generation_file", str(tmp_path / "in.json"), "--output_dir", str(tmp_path / "out"))
    assert "generation_file" in error and all(word in error for word in words), error
    assert not (tmp_path / "out").exists()
