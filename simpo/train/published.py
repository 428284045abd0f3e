"""The published SimPO runs: the settings that make a run one of them, and what others saw who repeated it.

published_runs.csv has facts: the papers' scores, and the evaluations on the model cards that it names.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).parent / "published_runs.csv"
OWN = ("beta", "gamma_beta_ratio", "learning_rate", "max_length", "max_prompt_length")
COMMON = {
    "objective": "simpo", "loss_type": "sigmoid", "label_smoothing": 0.0, "sft_weight": 0.0, "use_wpo_weighting": False,
    "use_peft": False, "num_train_epochs": 1.0, "max_steps": -1, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
}  # fmt: skip
PAIRS_PER_STEP = 128


class PublishedRun(NamedTuple):
    """A published configuration."""

    name: str
    """Its file in training_configs/."""
    scores: str
    """The released model's."""
    evaluation: dict[str, float]
    """What others saw, under the names of the log (eval_loss, ...); empty where nobody has told."""
    seen: str
    """When, and where that is to be read."""


def published_run(settings: Mapping[str, Any], pairs_per_step: float) -> PublishedRun | None:
    """The published run that these settings repeat, if they do.

    Args:
        settings: as run_config.yaml has them, and the objective's name. Model and data set count by the last part of
            their names, so that local copies do as well.
    """
    if round(pairs_per_step) != PAIRS_PER_STEP or any(settings.get(name) != value for name, value in COMMON.items()):
        return None
    data = [Path(name).name for name in settings["dataset_mixer"]]
    if set(settings["dataset_mixer"].values()) != {1.0}:
        return None
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            same = (row["model"] == Path(settings["model_name_or_path"]).name) and [row["data"]] == data
            if same and all(settings.get(name) == float(row[name]) for name in OWN):
                scores = f"AlpacaEval 2 LC {row['alpacaeval2_lc']}, Arena-Hard {row['arenahard_wr']}"
                evaluation = {name: float(text) for name, text in row.items() if name.startswith("eval_") and text}
                return PublishedRun(row["configuration"], scores, evaluation, row["seen"])
    return None
