"""The quickstart: its tasks and grader, and the whole loop on little data."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
import make_data
from tasks import FAMILIES, Task, draw_distinct, draw_tasks, final_answer, is_correct, rambling, short

QUICKSTART = ROOT / "examples" / "quickstart"


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


def test_data_come_from_the_seed_alone(tmp_path, monkeypatch):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        argv = ["make_data.py", "--output", str(tmp_path / name), "--seed", seed, "--scale", "0.1"]
        monkeypatch.setattr(sys, "argv", argv)
        make_data.main()
    files = [f"{name}/train.jsonl" for name in ("base", "sft", "reward", "more_sft")]
    for file in [*files, "reward/test.jsonl", "held_out.jsonl", "prompts.jsonl", "untrained/model.safetensors"]:
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c, file
    held_out = {json.loads(line)["prompt"] for line in (tmp_path / "a/held_out.jsonl").open()}
    assert len(held_out) == 40
    for file in files:
        for row in map(json.loads, (tmp_path / "a" / file).open()):
            assert row.get("messages", row.get("chosen"))[0]["content"] not in held_out


def test_grade(tmp_path):
    tasks = [Task("add", "1 + 1?", "2", "3"), Task("add", "2 + 2?", "4", "5"), Task("add", "3 + 3?", "6", "7")]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(task._asdict()) + "\n" for task in tasks))
    for side, answers in (("before", ["2.", "5.", "7."]), ("after", ["3.", "It is 4.", "6."])):
        rows = [
            {"prompt": t.prompt, "generated_text": a, "num_tokens": n}
            for n, (t, a) in enumerate(zip(tasks, answers, strict=True))
        ]
        (tmp_path / "output_0.json").write_text(json.dumps(rows[::-1]))
        grade("held_out.jsonl", "output_0.json", "--output", f"answers_{side}.json", cwd=tmp_path)
    answers = json.loads((tmp_path / "answers_after.json").read_text())
    assert [row["correct"] for row in answers] == [False, True, True] and answers[0]["expected"] == "2"
    (tmp_path / "stages").mkdir()
    for stage, seconds in (("base", 10), ("reward", 1000), ("reward_wait", 5)):
        (tmp_path / "stages" / stage).write_text(f"{seconds}\n")
    grade("--summary", str(tmp_path), cwd=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy_before"] == 1 / 3 and summary["accuracy_after"] == 2 / 3 and summary["n"] == 3
    assert summary["mean_length_before"] == 1 and summary["seconds"] == 15
    assert (tmp_path / "summary.txt").read_text() == "accuracy before 0.333 after 0.667 (n=3)\n"
    (row,) = [line for line in grade("--table", str(tmp_path), cwd=tmp_path).splitlines() if "after" in line]
    assert row == "| after | 0.667 ± 0.272 | +33.3 | 1.0 | 1 |"


def grade(*argv: str, cwd) -> str:
    result = run_script(sys.executable, str(QUICKSTART / "grade.py"), *argv, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_stages(out: Path, script: str, **settings: str) -> subprocess.CompletedProcess:
    """A script with the stages' functions; `make FILE` is a stage's command that writes FILE and says so."""
    make = 'make() { mkdir -p "$(dirname "$1")"; echo whole > "$1"; echo "making $1"; made=("$(dirname "$1")"); }'
    words = ["env", f"OUT={out}", *(f"{k}={v}" for k, v in settings.items()), "bash", "-c"]
    return run_script(*words, f"set -euo pipefail; . {QUICKSTART}/stages.sh; {make}; {script}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "a" / "file").write_text(""),
        lambda out: (out / "a" / "file").unlink(),
        lambda out: (out / "stages" / "one").write_text(""),
    ],
)
def test_a_marker_does_not_outlive_what_its_stage_made(tmp_path, damage):
    out = tmp_path / "out"
    two = 'stage one make "$out/a/file"; stage two make "$out/b/file"'
    assert run_stages(out, two).stdout.count("making") == 2
    (out / "a" / "another").write_text("of the user")
    assert "making" not in run_stages(out, two).stdout
    damage(out)
    again = run_stages(out, two)
    assert again.stdout.count("making") == 1 and "stage one is done again" in again.stdout, again.stderr
    assert (out / "a" / "file").read_text() == "whole\n"
    assert "making" not in run_stages(out, two).stdout


def test_seed_of_a_folder(tmp_path):
    assert run_stages(tmp_path, "true", SEED="3").returncode == 0
    assert "SEED=3" in run_stages(tmp_path, "true", SEED="4").stderr
    (tmp_path / "seed").write_text("")  # as a full disk leaves it
    assert run_stages(tmp_path, "true", SEED="3").returncode == 0
    assert (tmp_path / "seed").read_text() == "3\n"


def test_data_are_written_again_over_what_a_kill_left(tmp_path, monkeypatch):
    argv = ["make_data.py", "--output", str(tmp_path / "data"), "--scale", "0.01"]
    monkeypatch.setattr(sys, "argv", argv)
    make_data.main()
    whole = {path: path.read_bytes() for path in sorted((tmp_path / "data").rglob("*")) if path.is_file()}
    (tmp_path / "data" / "prompts.jsonl").write_text('{"prompt": "What')
    (tmp_path / "data" / "sft" / "train.jsonl").unlink()
    make_data.main()
    assert whole == {path: path.read_bytes() for path in sorted((tmp_path / "data").rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_a_script_ends_all_that_it_started(tmp_path, number, status):
    """... commands, what they start, and jobs in the background, although the signal goes to the script alone."""
    started = tmp_path / "started"
    sleeper = f"""{sys.executable} -c "
import subprocess, time
child = subprocess.Popen(['sleep', '600'])
open('{started}', 'a').write(str(child.pid) + chr(10))
time.sleep(600)" """
    script = f". {ROOT}/scripts/children.sh; background run {sleeper}; run {sleeper}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell cannot trap what it was started to ignore
    )
    while not started.exists() or started.read_text().count("\n") < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == status
    assert not any(
        Path(f"/proc/{pid}/stat").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
        for pid in started.read_text().split()
    )


@pytest.mark.slow
def test_the_whole_loop_killed_and_started_again(tmp_path, warm, chance):
    """run.sh on little data: killed with all its processes while the policy and the reward model are trained, then run
    to its end; a third run has nothing to do."""
    out = tmp_path / "out"
    command = ["bash", str(QUICKSTART / "run.sh")]
    settings = warm | {"OUT": str(out), "SEED": "5", "SCALE": "0.02"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, env=os.environ | settings, start_new_session=True, **quiet)
    deadline = time.time() + 200
    while not (out / "stages" / "base").exists() and time.time() < deadline and first.poll() is None:
        time.sleep(0.1)
    time.sleep(chance.uniform(0, 8))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (out / "summary.json").exists()
    result = run_script(*command, env=settings)
    assert result.returncode == 0, result.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert {"accuracy_before", "accuracy_after", "n", "mean_length_before", "mean_length_after", "seconds"} == {
        *summary
    }
    line = "accuracy before {accuracy_before:.3f} after {accuracy_after:.3f} (n={n})".format(**summary)
    assert result.stdout.splitlines()[-1] == line
    page = (out / "report.html").read_text()
    assert "data:image/svg" in page and 'src="http' not in page and "<script" not in page and "<link" not in page
    results = json.loads((out / "round_1/model/all_results.json").read_text())
    assert "train_loss" in results and "eval_rewards/margins" in results
    weights = (out / "round_1/model/model.safetensors").stat().st_mtime_ns
    again = run_script(*command, env=settings)
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == line and "==" not in again.stdout
    assert (out / "round_1/model/model.safetensors").stat().st_mtime_ns == weights
    other = run_script(*command, env=settings | {"SEED": "6"})
    assert other.returncode == 2 and "SEED=5" in other.stderr and "Traceback" not in other.stderr
    more = run_script(*command, env=settings | {"ROUNDS": "2"})
    assert more.returncode == 2 and "rounds was 1, now 2" in more.stderr and "Traceback" not in more.stderr
