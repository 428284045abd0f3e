"""Comparison of a run through the command line with a recorded run of the original."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_tokenization import sha


def check_recorded_run(shared, folder, monkeypatch, script, trainer_class: str, name: str) -> None:
    """Run `script` on the original's YAML, unmodified, and compare rows, steps, metrics and final weights.

    Args:
        script: the module of the run_*.py.
        trainer_class: the name of the trainer that it uses.
        name: the recorded run's.
    """
    for part in ("configs", "models", "pairs"):
        (folder / part).symlink_to(shared / "golden" / part)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script.py", f"configs/{name}.yaml"])
    trainers = []

    class Recorded(getattr(script, trainer_class)):
        """Keeps the loss of every micro-batch."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.micro_batch_losses = []
            trainers.append(self)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.micro_batch_losses.append(loss.item())
            return loss

    monkeypatch.setattr(script, trainer_class, Recorded)
    script.main()
    record = json.loads((shared / "golden" / "records" / f"{name}.json").read_text())
    trainer = trainers[0]

    columns = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
    for split, dataset in (("train", trainer.train_dataset), ("test", trainer.eval_dataset)):
        assert [sha([row[c] for c in columns]) for row in dataset] == record["rows"][split]["sha"]

    assert len(trainer.micro_batch_losses) == len(record["steps"])
    for found, expected in zip(trainer.micro_batch_losses, record["steps"], strict=True):
        assert found == pytest.approx(expected["loss"], rel=1e-3)

    state = json.loads((folder / "out" / name / "trainer_state.json").read_text())
    expected_log, found_log = (
        [entry for entry in log if "train_loss" not in entry] for log in (record["trainer_log"], state["log_history"])
    )
    assert len(found_log) == len(expected_log) > 20
    for expected, found in zip(expected_log, found_log, strict=True):
        for metric in expected:
            # logits/* are means over other positions (no padding); the old library logged the next step's learning rate
            if "logits/" not in metric and metric not in ("learning_rate", "total_flos"):
                # sums of hundreds of float32 log-probabilities are known to 1e-4, times beta
                tolerance = pytest.approx(expected[metric], rel=1e-3, abs=3e-5)
                assert found[metric] == tolerance, (metric, expected["step"])

    weights = load_file(folder / "out" / name / "model.safetensors")
    norm = torch.stack([w.double().norm() for w in weights.values()]).norm().item()
    assert norm == pytest.approx(record["final_norm"], rel=1e-4)
