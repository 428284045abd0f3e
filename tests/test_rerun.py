"""The same training command again: finished, changed, killed at any point, or running."""

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT, losses
from crashes import stops_of
from rerun_world import fingerprint, result
from transformers import Trainer

from run_simpo import main
from simpo.folder import lock_folder
from tiny_models import tiny_model

pytestmark = pytest.mark.slow  # whole runs

SCRIPT = str(ROOT / "scripts" / "run_simpo.py")


@pytest.fixture
def stops_short(config):
    """Settings of a run with a checkpoint at each of three steps, of eight in the epoch."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    return lambda **changes: config(**(settings | {"gradient_accumulation_steps": 1, "do_eval": True} | changes))


@pytest.mark.parametrize("changes", [{}, {"max_steps": -1, "num_train_epochs": 1}], ids=["steps", "epochs"])
def test_a_finished_run_stays_as_it_is(stops_short, run, tmp_path, capsys, monkeypatch, changes):
    path = stops_short(**changes, save_steps=2, eval_strategy="steps", eval_steps=2, generate_during_eval=True)
    run(path)
    before = fingerprint(tmp_path / "out")
    capsys.readouterr()
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trained"))
    run(path, "--logging_steps=5", "--save_total_limit=1")  # nothing that the weights depend on
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'out'} holds this run, finished")
    assert fingerprint(tmp_path / "out") == before


def test_a_finished_run_of_other_settings_says_what_to_do(stops_short, run, fails, tmp_path, capsys):
    path = stops_short()
    run(path)
    before = fingerprint(tmp_path / "out")
    for option, words in (("--learning_rate=2e-3", "learning_rate was 0.001, now 0.002"), ("--beta=3", "beta was 2.0")):
        error = fails(main, path, option)
        assert "holds a finished run of other settings" in error and words in error and "another output_dir" in error
    assert "--resume_from_checkpoint=" in (error := fails(main, path, "--max_steps=4")) and "max_steps was 3" in error
    other = tiny_model(tmp_path / "other", seed=1)
    assert "of another run (model:" in fails(main, path, f"--model_name_or_path={other}")
    assert fingerprint(tmp_path / "out") == before
    run(path, "--max_steps=4", f"--resume_from_checkpoint={tmp_path / 'out' / 'checkpoint-3'}")
    assert [entry["step"] for entry in losses(tmp_path / "out")] == [1, 2, 3, 4]


def test_a_model_trained_again_is_another_model(stops_short, run, fails, tmp_path):
    model = tiny_model(tmp_path / "model")
    run(stops_short(model_name_or_path=model))
    tiny_model(tmp_path / "model", seed=1)
    assert "of another run (weights:" in fails(main, stops_short(model_name_or_path=model))


def test_a_run_of_an_older_version_is_finished_too(stops_short, run, tmp_path, capsys):
    path = stops_short()
    run(path)
    for digests in (tmp_path / "out").rglob("digests.json"):
        digests.unlink()
    before = fingerprint(tmp_path / "out")
    capsys.readouterr()
    run(path)
    assert "finished" in capsys.readouterr().out and fingerprint(tmp_path / "out") == before


def test_evaluated_once_at_the_last_step(stops_short, run, tmp_path, monkeypatch):
    steps, evaluate = [], Trainer.evaluate
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self, *a, **k: steps.append(self.state.global_step) or evaluate(self, *a, **k)
    )
    path = stops_short(eval_strategy="steps", eval_steps=2)
    run(path)
    assert steps == [2, 3]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    last = next(entry for entry in history if entry["step"] == 3 and "eval_loss" in entry)
    assert {key: results[key] for key in last if key != "step"} == {k: v for k, v in last.items() if k != "step"}
    run(stops_short(output_dir=str(tmp_path / "end")))
    assert steps == [2, 3, 3] and "eval_loss" in json.loads((tmp_path / "end" / "eval_results.json").read_text())


def test_best_model_keeps_its_own_evaluation(stops_short, run, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run(stops_short(**best, eval_strategy="steps", eval_steps=1, save_total_limit=1, learning_rate=1e-2))
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 1  # the highest loss, and so the first
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_loss"] == state["best_metric"]
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]


# ---- kills -------------------------------------------------------------------------------------------------------


def test_kills_at_every_file_operation(stops_short, run, tmp_path):
    """Of the second checkpoint and the final save, and some of the first: the same command, the same result."""
    path = stops_short(max_steps=2, eval_strategy="steps", eval_steps=1, save_total_limit=1)
    out = tmp_path / "out"
    stops = stops_of(lambda: run(path), out, tmp_path / "stops")
    whole = result(out)
    first = [stop for stop in stops if not (stop.copy / "checkpoint-2").exists()]
    later = stops[len(first) :]
    assert len(later) > 40
    for stop in first[::6] + later:
        stop.restore()
        run(path)
        assert result(out) == whole, stop


def test_a_killed_launcher_leaves_no_trainer(config, fails, tmp_path):
    path = config(max_steps=10_000, save_strategy="steps", save_steps=1, save_total_limit=1)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu", SCRIPT, path]
    checkpoints = tmp_path / "out"
    with subprocess.Popen(launch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not list(checkpoints.glob("checkpoint-*/digests.json")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        assert "another run is writing to this folder" in fails(main, path)
        process.kill()
        process.communicate(timeout=600)  # which ends when nobody holds its pipe any more
    with lock_folder(checkpoints):
        pass
