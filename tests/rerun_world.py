"""What a training left in its folder, to compare with what the same command leaves the next time."""

import json
from pathlib import Path

from safetensors.torch import load_file

RATES = ("runtime", "per_second", "train_loss", "flos")


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
