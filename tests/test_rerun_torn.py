"""The same training command over what a crash, a full disk or an older version left."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
from conftest import CACHE, losses, make_pairs, write_jsonl
from rerun_world import fingerprint, result

from run_simpo import main
from simpo.folder import lock_folder
from simpo.train.finish import SINCE_RESUME

pytestmark = pytest.mark.slow  # whole runs


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
