"""The part of the model card that transformers does not write: the objective and its paper."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simpo.train.trainer import PreferenceTrainer


def append_objective(trainer: "PreferenceTrainer") -> None:
    """Append the objective, its settings and its paper to output_dir/README.md."""
    settings = {
        **trainer.objective_settings(),
        "max_length": trainer.args.max_length,
        "max_prompt_length": trainer.args.max_prompt_length,
    }
    lines = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    with (Path(trainer.args.output_dir) / "README.md").open("a", encoding="utf-8") as file:
        file.write(f"\n## Objective\n\nTrained with {trainer.paper}.\n\n{lines}\n")
