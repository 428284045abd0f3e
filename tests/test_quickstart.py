"""The quickstart's tasks and grader, and its bundled pairs."""

import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
from tasks import FAMILIES, Task, draw_distinct, draw_tasks, final_answer, is_correct, rambling, short


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_right_and_slips_wrong_in_every_style(seed):
    rng = random.Random(seed)
    for task in draw_tasks(900, rng):
        for style in (short, rambling):
            assert is_correct(task, style(task.answer, rng)), task
            assert not is_correct(task, style(task.slip, rng)), task


def test_grader_by_hand():
    task = Task("add", "What is 3 plus 4?", "7", "8")
    assert is_correct(task, "Well, 3 and 4 make 7.") and not is_correct(task, "7? No, it is 8.")
    assert not is_correct(task, "") and not is_correct(task, "It is 17.") and final_answer("hm") is None
    assert is_correct(Task("day", "", "Monday", "Friday"), "It is MONDAY!")


def test_draws_are_repeatable_balanced_and_keep_out_what_is_excluded():
    tasks = draw_tasks(90, random.Random(1))
    assert tasks == draw_tasks(90, random.Random(1)) != draw_tasks(90, random.Random(2))
    assert [t.family for t in tasks].count("day") == 90 // len(FAMILIES)
    held_out = draw_distinct(100, random.Random(3))
    prompts = {task.prompt for task in held_out}
    assert len(prompts) == 100
    assert not prompts & {task.prompt for task in draw_tasks(3000, random.Random(4), frozenset(prompts))}


def test_bundled_pairs():
    for split, count in (("train", 256), ("test", 64)):
        rows = [json.loads(line) for line in (ROOT / f"examples/quickstart/pairs/{split}.jsonl").open()]
        assert len(rows) == count
        for row in rows:
            assert row["chosen"][:-1] == row["rejected"][:-1] == [{"role": "user", "content": row["prompt"]}]
            assert row["chosen"][-1]["role"] == "assistant" and row["chosen"] != row["rejected"]


def test_data_come_from_the_seed_alone(tmp_path):
    script = str(ROOT / "examples" / "quickstart" / "make_data.py")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        result = run_script(sys.executable, script, "--output", str(tmp_path / name), "--seed", seed)
        assert result.returncode == 0, result.stderr
    files = [f"data/{name}" for name in ("sft/train.jsonl", "held_out.jsonl")] + ["models/untrained/model.safetensors"]
    for file in files:
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c


def test_run_script_is_valid_shell():
    subprocess.run(["bash", "-n", str(ROOT / "examples" / "quickstart" / "run.sh")], check=True)
