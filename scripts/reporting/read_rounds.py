"""What the report reads of a training in rounds (on_policy_data_gen/run_rounds.sh): answers to the held-out prompts."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from reporting.checks import answers_of, check_row, is_number, key_of, read_json

HELD_OUT = "held_out"


@dataclass
class Model:
    """The start model (round 0) or a round's, and its answers to the held-out prompts."""

    round: int
    rewards: dict[str, float] = field(default_factory=dict)
    """By prompt; none before they are scored."""
    correct: dict[str, float] = field(default_factory=dict)
    """1.0 or 0.0 by prompt, where somebody graded the answers."""
    lengths: list[int] = field(default_factory=list)
    """In tokens."""
    cut: int = 0

    @property
    def name(self) -> str:
        return f"round {self.round}" if self.round else "start"


@dataclass
class Rounds:
    """All models of a run, in order, and how many rounds it is to have."""

    planned: int
    models: list[Model]


def read_rounds(folder: Path) -> Rounds | None:
    """Read RUN_DIR/rounds.json, held_out/ and the graded answers; None where the run has no rounds.

    Raises:
        UserError: a file is not of the form expected.
    """
    record = folder / "rounds.json"
    planned = read_json(record, dict).get("rounds", 0)
    if not isinstance(planned, int) or planned < 1:
        return None
    scores = read_scores_by_answer(folder / HELD_OUT / "all_outputs_rm.json")
    models = []
    for index in range(planned + 1):
        path = folder / HELD_OUT / str(index) / "output_0.json"
        if not path.is_file():
            break
        model = Model(index)
        for place, row in enumerate(read_json(path, list)):
            key = key_of(check_row(path, place, row, "prompt", "generated_text"))
            if is_number(score := scores.get(key, {}).get(row["generated_text"])) and math.isfinite(score):
                model.rewards[key] = score
            if is_number(row.get("num_tokens")):
                model.lengths.append(row["num_tokens"])
            model.cut += row.get("finish_reason") == "length"
        side = "before" if index == 0 else "after" if index == planned else f"round_{index}"
        graded = answers_of(folder / f"answers_{side}.json")
        if all(isinstance(row.get("correct"), bool) for row in graded.values()):
            model.correct = {json.dumps(key): float(row["correct"]) for key, row in graded.items()}
        models.append(model)
    return Rounds(planned, models)


def read_scores_by_answer(path: Path) -> dict[str, dict[str, float]]:
    found = {}
    for place, row in enumerate(read_json(path, list)):
        check_row(path, place, row, "prompt", "all_generated_responses", "all_rm_scores")
        found[key_of(row)] = dict(zip(row["all_generated_responses"], row["all_rm_scores"], strict=False))
    return found
