"""The part of the model card that transformers does not write: the objective and its paper."""

from pathlib import Path
from typing import Any


def append_objective(folder: Path, paper: str, settings: dict[str, Any]) -> None:
    """Append the objective's paper and settings to folder/README.md.

    Args:
        paper: Markdown link.
    """
    lines = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    with (folder / "README.md").open("a", encoding="utf-8") as file:
        file.write(f"\n## Objective\n\nTrained with {paper}.\n\n{lines}\n")
