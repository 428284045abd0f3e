"""scripts/run_wpo.py: the recorded run, three agreeing sources of the reference, weights, DPO, what it refuses."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import CACHE, losses
from recorded import check_recorded_run

import run_simpo
import run_wpo
from tiny_models import tiny_model


def run(monkeypatch, *argv: str, script=run_wpo) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])
    script.main()


@pytest.fixture
def wpo(config):
    return lambda **changes: config(**({"beta": 0.1, "gamma_beta_ratio": None, "dataset_splits": ["train"]} | changes))


@pytest.mark.slow
def test_recorded_run(shared, tmp_path, monkeypatch):
    check_recorded_run(shared, tmp_path, monkeypatch, run_wpo, "WPOTrainer", "wpo")


def check_equal(folder, names, tolerance=1e-5) -> None:
    first, *others = (losses(folder / name) for name in names)
    assert len(first) == 4
    for other in others:
        for expected, found in zip(first, other, strict=True):
            for metric in ("loss", "rewards/margins", "rewards/chosen", "weights/mean", "grad_norm"):
                assert found[metric] == pytest.approx(expected[metric], rel=tolerance, abs=tolerance)


def count_loads(monkeypatch) -> list[str]:
    """Names of the models loaded from here on, in order."""
    from simpo.train import model as model_utils

    names, load = [], model_utils.load_model
    monkeypatch.setattr(
        model_utils, "load_model", lambda args, dtype: names.append(args.model_name_or_path) or load(args, dtype)
    )
    return names


@pytest.mark.slow
def test_second_copy_and_precomputed_agree(wpo, tmp_path, monkeypatch, model_folder):
    monkeypatch.setattr("simpo.train.reference.HF_DATASETS_CACHE", str(tmp_path))  # nothing another test has computed
    path = wpo(dataset_splits=["train", "test"], do_eval=True)
    run(monkeypatch, path, f"--output_dir={tmp_path / 'copy'}")
    loads = count_loads(monkeypatch)
    run(monkeypatch, path, f"--output_dir={tmp_path / 'computed'}", "--precompute_ref_log_probs=true")
    assert loads == [model_folder] * 2
    run(monkeypatch, path, f"--output_dir={tmp_path / 'read'}", "--precompute_ref_log_probs=true")
    assert loads == [model_folder] * 3  # the policy only: the values were kept
    check_equal(tmp_path, ["copy", "computed", "read"])
    results = [json.loads((tmp_path / n / "eval_results.json").read_text()) for n in ("copy", "computed", "read")]
    assert results[1]["eval_loss"] == results[2]["eval_loss"] == pytest.approx(results[0]["eval_loss"], abs=1e-5)


@pytest.mark.slow
def test_adapters_off_second_copy_and_precomputed_agree(wpo, tmp_path, monkeypatch, model_folder):
    path = wpo(use_peft=True, lora_r=4, learning_rate=1e-2)
    run(monkeypatch, path, f"--output_dir={tmp_path / 'adapters'}")
    run(monkeypatch, path, f"--output_dir={tmp_path / 'copy'}", f"--ref_model_name_or_path={model_folder}")
    run(monkeypatch, path, f"--output_dir={tmp_path / 'computed'}", "--precompute_ref_log_probs=true")
    check_equal(tmp_path, ["adapters", "copy", "computed"])
    assert abs(losses(tmp_path / "copy")[-1]["rewards/margins"]) > 1e-3  # the policy did move


@pytest.mark.slow
def test_stale_precomputed_values_are_not_used(wpo, tmp_path, monkeypatch):
    model = tiny_model(tmp_path / "model")
    loads = count_loads(monkeypatch)

    def loaded(**changes) -> int:
        loads.clear()
        run(monkeypatch, wpo(model_name_or_path=model, precompute_ref_log_probs=True, max_steps=1, **changes))
        shutil.rmtree(tmp_path / "out")
        return len(loads)

    assert loaded() == 2 and loaded() == 1
    assert loaded(chat_template="zephyr") == 2  # other text
    assert loaded(max_length=80) == 2  # other tokens
    tiny_model(tmp_path / "model", seed=5)  # other weights under the same name
    os.utime(tmp_path / "model" / "model.safetensors", ns=(1, 1))
    assert loaded() == 2 and loaded() == 1


TEARS = {
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:-40] + bytes(40)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEARS)
def test_torn_precomputed_values_are_computed_again(wpo, tmp_path, monkeypatch, capsys, kind):
    model = tiny_model(tmp_path / "model")  # of this test: so are the values
    path = wpo(model_name_or_path=model, precompute_ref_log_probs=True, max_steps=1)
    kept = Path(CACHE) / "ref_logps"
    before = set(kept.rglob("*.safetensors"))
    run(monkeypatch, path, f"--output_dir={tmp_path / 'computed'}")
    (file,) = set(kept.rglob("*.safetensors")) - before
    TEARS[kind](file)
    loads = count_loads(monkeypatch)
    run(monkeypatch, path, f"--output_dir={tmp_path / 'again'}")
    assert f"{file} is torn: its reference log-probabilities are computed again" in capsys.readouterr().err
    run(monkeypatch, path, f"--output_dir={tmp_path / 'read'}")
    assert loads == [model] * 3  # policy and reference, then the policy only
    first, *others = (losses(tmp_path / name)[0] for name in ("computed", "again", "read"))
    assert all(other["loss"] == first["loss"] and other["grad_norm"] == first["grad_norm"] for other in others)


def test_first_loss_and_weights(wpo, tmp_path, monkeypatch, capsys):
    run(monkeypatch, wpo())
    assert "at most 0.693 expected" in capsys.readouterr().out
    first = losses(tmp_path / "out")[0]
    assert 0 < first["weights/min"] <= first["weights/mean"] <= 1
    assert first["loss"] == pytest.approx(0.693147 * first["weights/mean"], rel=1e-3)


def test_dpo_is_the_same_script(wpo, tmp_path, monkeypatch):
    run(monkeypatch, wpo(use_wpo_weighting=False))
    first = losses(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(0.693147, rel=1e-4) and "weights/mean" not in first


def test_weights_work_for_simpo(config, tmp_path, monkeypatch):
    run(monkeypatch, config(max_steps=1, output_dir=str(tmp_path / "plain")), script=run_simpo)
    run(monkeypatch, config(max_steps=1, use_wpo_weighting=True), script=run_simpo)
    plain, weighted = (losses(tmp_path / name)[0] for name in ("plain", "out"))
    assert "weights/mean" not in plain and weighted["rewards/margins"] == pytest.approx(plain["rewards/margins"])
    assert plain["loss"] * weighted["weights/min"] <= weighted["loss"] < plain["loss"]


def test_reference_with_another_vocabulary(wpo, fails, tmp_path):
    other = tiny_model(tmp_path / "other", vocab_size=500)
    message = fails(run_wpo.main, wpo(ref_model_name_or_path=other))
    assert f"the reference model {other} has a vocabulary of 500 tokens, the policy one of" in message
    assert not (tmp_path / "out").exists()


def test_refused(wpo, fails, tmp_path):
    message = fails(run_wpo.main, wpo(gamma_beta_ratio=0.5))
    assert "gamma_beta_ratio is a setting of alphapo, simpo, not of wpo" in message
    assert "loss_type" in fails(run_wpo.main, wpo(loss_type="hinge"))
    assert "nobody/nothing" in fails(run_wpo.main, wpo(ref_model_name_or_path="nobody/nothing"))
    assert not (tmp_path / "out").exists()
