"""The report of a training in rounds: every round's model beside the start model, on the same held-out prompts."""

import json
import shutil
from pathlib import Path

import pytest
from test_report import Elements, training, write

from reporting.numbers import MINUS, NONE
from reporting.page import render
from reporting.read import read_run
from reporting.rounds import rounds_headline, rounds_table, run_headline

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
PROMPTS = ["a", "b", "c", CONVERSATION]
REWARDS = [[0.0, 1.0, 2.0, 1.0], [1.0, 1.0, 3.0, 1.0], [2.0, 2.0, 3.0, 5.0]]  # of the start and of two rounds


def three_models(folder: Path, planned: int = 2) -> Path:
    write(folder / "rounds.json", {"rounds": planned, "model": "m"})
    for number in range(3):
        rows = [
            {"prompt": p, "generated_text": f"{i}/{number}", "finish_reason": "length" if i == 0 else "stop"}
            | {"num_tokens": 10 + number}
            for i, p in enumerate(PROMPTS)
        ]
        write(folder / f"held_out/{number}/output_0.json", rows)
    scored = [
        {
            "prompt": p,
            "all_generated_responses": [f"{i}/{n}" for n in range(3)],
            "all_rm_scores": [r[i] for r in REWARDS],
        }
        for i, p in enumerate(PROMPTS)
    ]
    write(folder / "held_out/all_outputs_rm.json", scored[::-1])
    for number in (1, 2):
        round_folder = folder / f"round_{number}"
        training(round_folder / "model")
        write(round_folder / "model/all_results.json", {"eval_rewards/accuracies": 0.75, "eval_samples": 48})
        write(round_folder / "model/data_report.json", {"train": {"rows": 6, "dropped_identical": number}})
        sampled = [{"prompt": p, "generated_text": "x", "finish_reason": "stop"} for p in PROMPTS]
        for seed in (13, 21):
            write(round_folder / f"train/output_{seed}.json", sampled)
        rows = [
            {"prompt": p, "all_generated_responses": ["x", "yyy"], "all_rm_scores": [number, -1.0]} for p in PROMPTS
        ]
        write(round_folder / "train/all_outputs.json", rows[1:])
        write(round_folder / "annotated/all_outputs_rm.json", rows)
        sides = {"chosen": [{"content": "x"}], "rejected": [{"content": "yyy"}]}
        write(round_folder / "annotated/all_outputs_bin.json", [row | sides for row in rows[:2]])
    return folder


def cells(run) -> dict[str, list[str]]:
    return {what: values for _, rows in rounds_table(run) for what, values in rows}


def test_every_round_beside_the_start(tmp_path):
    run = read_run(three_models(tmp_path), "run")
    found = cells(run)
    # 0 1 2 1: mean 1, variance 2/3, standard error sqrt(1/6); differences 1 0 1 0: 1/2, variance 1/3, sqrt(1/12)
    assert found["reward"][:2] == ["1.000 ± 0.408", "1.500 ± 0.500"]
    assert found["change from the start, paired by prompt"][:2] == [NONE, "+0.500 ± 0.289"]
    assert found["length, tokens"] == ["10.0 ± 0.0", "11.0 ± 0.0", "12.0 ± 0.0"]
    assert found["cut by max_tokens"] == ["1", "1", "1"]
    assert found["responses sampled (2 seeds)"] == [NONE, "8", "8"]
    assert found["prompts dropped: fewer than two different responses"] == [NONE, "1", "1"]
    assert found["pairs kept"] == [NONE, "2", "2"] and found["margin (median)"] == [NONE, "2", "3"]
    assert found["pairs trained on"] == [NONE, "6", "6"] and found["pairs dropped before training"] == [NONE, "1", "2"]
    assert found["test pairs with the higher reward on chosen, %"] == [NONE, "75.0 ± 6.2", "75.0 ± 6.2"]
    assert "correct, %" not in found
    top = rounds_headline(run)
    assert top.figure == "1.000 → 3.000" and "start to round 2; change +2.000 (standard error 0.707" in top.text
    assert [stage.name for stage in run.stages] == ["round_1", "round_2"]
    assert not any("held_out" in data.name for data in run.data)


def test_graded_answers_of_each_round(tmp_path):
    three_models(tmp_path)
    for name, grades in (("before", "rwww"), ("round_1", "rrww"), ("after", "rrrr")):
        rows = [{"prompt": f"p{i}", "answer": "x", "correct": grade == "r"} for i, grade in enumerate(grades)]
        write(tmp_path / f"answers_{name}.json", rows)
    run = read_run(tmp_path, "run")
    assert cells(run)["correct, %"] == ["25.0 ± 25.0", "50.0 ± 28.9", "100.0 ± 0.0"]
    assert cells(run)["change from the start, points, paired by prompt"] == [NONE, "+25.0 ± 25.0", "+75.0 ± 25.0"]
    assert rounds_headline(run) is None  # the grades say more


@pytest.mark.parametrize(("after", "is_worse"), [("w" * 16, True), ("r" * 15 + "w", False)])
def test_a_round_that_was_better_than_the_last_is_named(tmp_path, after, is_worse):
    three_models(tmp_path)
    for name, grades in (("before", "w" * 16), ("round_1", "r" * 16), ("after", after)):
        rows = [{"prompt": f"p{i}", "answer": "x", "correct": grade == "r"} for i, grade in enumerate(grades)]
        write(tmp_path / f"answers_{name}.json", rows)
    text = run_headline(read_run(tmp_path, "run")).text
    best = f"Best was round 1 with 100.0 % correct: {MINUS}100.0 ± 0.0 from there to round 2."
    assert text.endswith(best) if is_worse else "Best was" not in text


@pytest.mark.parametrize("scored", [True, False])
def test_unfinished_rounds(tmp_path, scored):
    three_models(tmp_path, planned=4)
    shutil.rmtree(tmp_path / "held_out/2")
    shutil.rmtree(tmp_path / "round_2")
    if not scored:
        (tmp_path / "held_out/all_outputs_rm.json").unlink()
    run = read_run(tmp_path, "run")
    assert len(cells(run)["length, tokens"]) == 2 and ("reward" in cells(run)) == scored
    page = Elements(render([run]))
    assert "1 of 4 rounds are measured" in page.text


def test_a_score_that_is_missing_and_ten_rounds(tmp_path):
    three_models(tmp_path)
    path = tmp_path / "held_out/all_outputs_rm.json"
    rows = json.loads(path.read_text())
    rows[0]["all_rm_scores"][1] = None
    path.write_text(json.dumps(rows))
    (tmp_path / "round_2").rename(tmp_path / "round_10")
    run = read_run(tmp_path, "run")
    assert len(run.rounds.models[1].rewards) == 3 and len(run.rounds.models[0].rewards) == 4
    assert [stage.name for stage in run.stages] == ["round_1", "round_10"]


def test_the_page_of_several_runs(tmp_path):
    runs = [read_run(three_models(tmp_path / name), name) for name in ("one", "two")]
    page = Elements(render([*runs, read_run(training(tmp_path / "three"), "three")]))
    for words in ("Rounds", "one: 2 of 2 rounds are measured", "two: 2 of 2", "Answers to the held-out prompts"):
        assert words in page.text
