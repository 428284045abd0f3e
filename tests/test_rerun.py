"""The same training command again: finished, stopped at any point, torn, changed, or running."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CACHE, ROOT, losses, make_pairs, run_script, write_jsonl
from crashes import stops_of
from safetensors.torch import load_file
from transformers import Trainer

from run_simpo import main
from simpo.folder import lock_folder
from simpo.train.finish import SINCE_RESUME
from tiny_models import tiny_model

pytestmark = pytest.mark.slow  # whole runs

SCRIPT = str(ROOT / "scripts" / "run_simpo.py")
RATES = ("runtime", "per_second", "train_loss", "flos")


@pytest.fixture
def run(monkeypatch):
    def run(*argv: str) -> None:
        monkeypatch.setattr(sys, "argv", ["run_simpo.py", *argv])
        main()

    return run


@pytest.fixture
def stops_short(config):
    """Settings of a run with a checkpoint at each of three steps, of eight in the epoch."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    return lambda **changes: config(**(settings | {"gradient_accumulation_steps": 1, "do_eval": True} | changes))


def fingerprint(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def without_rates(value):
    if isinstance(value, dict):
        return {key: without_rates(v) for key, v in value.items() if not any(rate in key for rate in RATES)}
    return [without_rates(v) for v in value] if isinstance(value, list) else value


def result(folder: Path) -> dict:
    """What a run leaves, but for what depends on the clock."""
    weights = {key: value.tolist() for key, value in load_file(folder / "model.safetensors").items()}
    state = json.loads((folder / "trainer_state.json").read_text())
    reports = {p.name: without_rates(json.loads(p.read_text())) for p in folder.glob("*_results.json")}
    # digests.json: all else is there a moment before it is, and such a run is finished too
    names = sorted({p.name for p in folder.iterdir()} - {".lock", "digests.json", "digests.json.tmp"})
    return {"weights": weights, "history": without_rates(state["log_history"]), "files": names} | reports


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


# ---- torn and hostile state --------------------------------------------------------------------------------------


def zeros_in_the_middle(path: Path) -> None:
    """What a power loss leaves: the length is right, blocks are not."""
    content, middle = bytearray(path.read_bytes()), path.stat().st_size // 2
    content[middle : middle + 512] = bytes(len(content[middle : middle + 512]))
    path.write_bytes(content)


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


TEARS = {
    "zeros": zeros_in_the_middle,
    "empty": lambda path: path.write_bytes(b""),
    "null": lambda path: path.write_bytes(b"null\n"),
    "garbage": lambda path: path.write_bytes(b"{\x00\xff not json\n" + path.read_bytes()),
    "folder": folder_in_its_place,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder, pairs_folder):
    """A finished run with two checkpoints: its folder, its configuration, and its result."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {
        **{
            "model_name_or_path": model_folder,
            "dataset_mixer": {pairs_folder: 0.2},
            "use_cpu": True,
            "report_to": "none",
        },
        **{"max_length": 96, "max_prompt_length": 48, "max_steps": 2, "per_device_train_batch_size": 2},
        **{"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "learning_rate": 1e-3, "disable_tqdm": True},
        **{"do_eval": True, "eval_strategy": "steps", "eval_steps": 1, "generate_during_eval": True},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run_simpo.py", str(folder / "config.yaml"), f"--output_dir={folder / 'whole'}"])
        main()
    return folder / "whole", str(folder / "config.yaml"), result(folder / "whole")


def unfinish(folder: Path) -> None:
    """As if stopped in the final save."""
    for name in ("digests.json", "trainer_state.json", "all_results.json", "model.safetensors"):
        (folder / name).unlink()


TORN = [
    *(("finished", "trainer_state.json", kind) for kind in ("null", "folder")),
    *(("finished", "all_results.json", kind) for kind in ("empty", "zeros")),
    *(("finished", "model.safetensors", kind) for kind in ("zeros", "folder")),
    *(("finished", name, "garbage") for name in ("config.json", "digests.json")),
    *(("stopped", "checkpoint-2/model.safetensors", kind) for kind in ("zeros", "folder")),
    *(("stopped", "checkpoint-2/optimizer.pt", kind) for kind in ("zeros", "empty")),
    *(("stopped", f"checkpoint-2/{name}", "null") for name in ("config.json", "digests.json")),
    ("stopped", "checkpoint-2/tokenizer.json", "folder"),
    *(("stopped", "run_config.yaml", kind) for kind in ("garbage", "folder")),
]


@pytest.mark.parametrize(("state", "name", "kind"), TORN)
def test_torn_files_are_made_again(finished, run, tmp_path, capsys, state, name, kind):
    whole, path, expected = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    if state == "stopped":
        unfinish(out)
    TEARS[kind](out / name)
    run(path, f"--output_dir={out}")
    captured = capsys.readouterr()
    assert "warning: " in captured.err and Path(name).name in captured.err
    found = result(out)
    found["files"] = [file for file in found["files"] if ".broken" not in file]
    assert found == expected
    assert (out / "generations.jsonl").read_text() == (whole / "generations.jsonl").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt"])
def test_checkpoints_of_older_versions_are_resumed_from(finished, run, tmp_path, capsys, name):
    """Without digests; and torn ones are seen by their ends."""
    whole, path, expected = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    unfinish(out)
    for digests in out.rglob("digests.json"):
        digests.unlink()
    os.truncate(out / "checkpoint-2" / name, 100)
    run(path, f"--output_dir={out}")
    captured = capsys.readouterr()
    assert f"skipping {out / 'checkpoint-2'}: {name} is torn" in captured.err and "resuming from" in captured.out
    assert result(out) == expected


def test_a_torn_result_without_a_checkpoint(finished, run, tmp_path, capsys):
    """The model is whole: it is not trained again for the sake of its history."""
    whole, path, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("checkpoint-*"))
    zeros_in_the_middle(out / "trainer_state.json")
    before = fingerprint(out)
    run(path, f"--output_dir={out}")
    captured = capsys.readouterr()
    assert "trainer_state.json is torn; the model is whole" in captured.err and "finished" in captured.out
    assert fingerprint(out) == before


@pytest.mark.parametrize("tear", [None, b'{"step": 9, "prompt": "x", "gen', b"\0" * 30])
def test_generations_are_not_doubled(finished, run, tmp_path, tear):
    """A run stopped after its last checkpoint had answered at later steps."""
    whole, path, _ = finished
    out, answers = tmp_path / "out", (whole / "generations.jsonl").read_bytes()
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("checkpoint-2"))
    unfinish(out)
    if tear:
        (out / "generations.jsonl").write_bytes(answers + tear)
    run(path, f"--output_dir={out}")
    assert (out / "generations.jsonl").read_bytes() == answers
    assert [entry["loss"] for entry in losses(out)] == pytest.approx([e["loss"] for e in losses(whole)], abs=1e-6)


def test_after_a_resume_no_rate_of_a_part_stands_for_the_whole(finished, run, tmp_path):
    whole, path, _ = finished
    out = tmp_path / "out"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("checkpoint-2"))
    unfinish(out)
    run(path, f"--output_dir={out}")
    for name in ("all_results.json", "train_results.json", "trainer_state.json"):
        before, after = ((folder / name).read_text() for folder in (whole, out))
        assert "train_loss" in before and "train_runtime" in before
        assert not any(f'"{rate}"' in after for rate in SINCE_RESUME)


@pytest.mark.parametrize("tear", [zeros_in_the_middle, TEARS["empty"], lambda path: os.truncate(path, 900)])
def test_torn_caches_of_the_data_are_made_again(config, run, tmp_path, capsys, tear):
    write_jsonl(tmp_path / "pairs" / "train.jsonl", make_pairs(8, offset=os.getpid()))
    path = config(dataset_mixer={str(tmp_path / "pairs"): 1.0}, dataset_splits=["train"], max_steps=1)
    before = set(Path(CACHE).rglob("*.arrow"))
    run(path)
    made = set(Path(CACHE).rglob("*.arrow")) - before
    assert len(made) >= 3  # as read, as text, as tokens
    for number, file in enumerate(sorted(made)):
        tear(file)
        capsys.readouterr()
        run(path, f"--output_dir={tmp_path / str(number)}")
        assert "is torn: made again" in capsys.readouterr().err
        assert losses(tmp_path / str(number)) == losses(tmp_path / "out")


# ---- disks, locks, launchers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [20_000, 200_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(finished, fails, run, tmp_path, room):
    """A limit on the size of files stands in for the disk; weights, optimizer and tokenizer are of different sizes."""
    _, path, expected = finished
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        error = fails(main, path, f"--output_dir={out}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(out) in error and "File too large" in error and "run the same command again" in error
    run(path, f"--output_dir={out}")
    assert result(out) == expected


def test_one_run_at_a_time(finished, fails, tmp_path):
    _, path, _ = finished
    with lock_folder(tmp_path / "out"):
        assert "another run is writing to this folder" in fails(main, path, f"--output_dir={tmp_path / 'out'}")


def test_a_killed_launcher_leaves_no_trainer(config, tmp_path, warm):
    path = config(max_steps=10_000, save_strategy="steps", save_steps=1, save_total_limit=1)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu", SCRIPT, path]
    checkpoints = tmp_path / "out"
    with subprocess.Popen(launch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not list(checkpoints.glob("checkpoint-*/digests.json")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        second = run_script("python", SCRIPT, path, env=warm)
        assert second.returncode == 2 and "another run is writing to this folder" in second.stderr
        process.kill()
        process.communicate(timeout=600)  # which ends when nobody holds its pipe any more
    with lock_folder(checkpoints):
        pass
