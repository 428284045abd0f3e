"""What the report reads of data generation: sampled responses, their scores and pairs, and what was left out."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reporting.checks import check, check_row, is_number, key_of, read_json
from simpo.console import UserError


class PairScore(NamedTuple):
    """The scores of a pair's responses and their lengths in characters."""

    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int


@dataclass
class ScoredData:
    """What data generation left in one folder."""

    name: str
    scores: list[list[float]] = field(default_factory=list)
    """Of every prompt's responses."""
    pairs: list[PairScore] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Prompts, responses and pairs by what became of them, in the order of the steps."""


def read_data(folder: Path, name: str) -> Iterator[ScoredData]:
    """What decode, post_process and annotate left in a folder: its prompts and, apart from them, its test prompts."""
    for suffix in ("", "_test"):
        scored, paired = folder / f"all_outputs_rm{suffix}.json", folder / f"all_outputs_bin{suffix}.json"
        data = ScoredData(f"{name or 'responses'}{' (test)' if suffix else ''}")
        if not suffix:
            data.counts |= count_sampled(folder)
        if scored.is_file():
            rows = read_json(scored, list)
            every = [scores_of(scored, number, row) for number, row in enumerate(rows)]
            data.scores = [[score for score in scores if score is not None] for scores in every]
            data.counts["prompts scored"] = len(data.scores)
            if unscored := sum(scores.count(None) for scores in every):
                data.counts["responses without a score"] = unscored
        if paired.is_file():
            pairs = read_json(paired, list)
            data.pairs = [score_pair(paired, number, row) for number, row in enumerate(pairs)]
            if scored.is_file():
                paired_prompts = {key_of(check_row(paired, n, row, "prompt")) for n, row in enumerate(pairs)}
                left = [
                    scores
                    for number, (row, scores) in enumerate(zip(rows, data.scores, strict=True))
                    if key_of(check_row(scored, number, row, "prompt")) not in paired_prompts
                ]
                same = sum(len(set(scores)) < 2 for scores in left)
                data.counts["prompts without a pair: no two different scores"] = same
                data.counts["prompts without a pair: below min_margin, or by the selection rule"] = len(left) - same
            data.counts["pairs kept"] = len(data.pairs)
        if data.counts:
            yield data


def count_sampled(folder: Path) -> dict[str, int]:
    """Counts of decode's and post_process's files."""
    counts: dict[str, int] = {}
    files = [path for path in sorted(folder.glob("output_*.json")) if re.fullmatch(r"output_\d+\.json", path.name)]
    rows = [check_row(path, n, row, "prompt") for path in files for n, row in enumerate(read_json(path, list))]
    if rows:
        counts[f"responses sampled ({len(files)} seeds)"] = len(rows)
        if "finish_reason" in rows[0]:
            counts["responses cut by max_tokens"] = sum(row.get("finish_reason") == "length" for row in rows)
    if (skipped := folder / "skipped_prompts.json").is_file():
        counts["prompts skipped: too long for the model"] = len(read_json(skipped, list))
    if rows and (joined := folder / "all_outputs.json").is_file():
        kept = {
            json.dumps(check_row(joined, n, row, "prompt")["prompt"]) for n, row in enumerate(read_json(joined, list))
        }
        lost = {json.dumps(row["prompt"]) for row in rows} - kept  # the file may hold other parts' prompts, too
        counts["prompts dropped: fewer than two different responses"] = len(lost)
    return counts


def scores_of(path: Path, number: int, row: Any) -> list[float | None]:
    """One for each response; None where it could not be scored."""
    scores = check_row(path, number, row, "all_rm_scores")["all_rm_scores"]
    check(path, isinstance(scores, list) and scores != [], "all_rm_scores", number)
    known = [score for score in scores if score is not None]
    check(path, all(is_number(score) and math.isfinite(score) for score in known), "all_rm_scores", number)
    return scores


def score_pair(path: Path, number: int, row: Any) -> PairScore:
    """A pair's scores: those of its answers among all the prompt's responses."""
    scores = scores_of(path, number, row)
    check_row(path, number, row, "all_generated_responses", "chosen", "rejected")
    try:
        answers = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        chosen, rejected = (float(scores[row["all_generated_responses"].index(answer)]) for answer in answers)
        return PairScore(chosen, rejected, *map(len, answers))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}, row {number}: chosen or rejected is not one of the scored responses") from error
