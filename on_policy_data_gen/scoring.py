"""Scores that survive a stop: every value in a journal as it comes, with what could not be scored and why."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from candidates import is_number, name_of
from processes import Processes
from scorer import score_with
from simpo.chat.thinking import TAGS, split_thinking
from simpo.console import UserError, progress, say, warn
from simpo.engine.team import Team
from simpo.folder import Journal
from truncation import warn_of_cut

HOPELESS = 64  # values that all fail for one reason (not for memory: the longest come first), after which it is enough
NOT_TRIED = "not tried, because all before it failed"


def unit_key(unit: tuple[Any, ...]) -> str:
    """What names a unit in journals."""
    return hashlib.sha256(json.dumps(unit).encode()).hexdigest()[:32]


def to_record(outcome: Any) -> Any:
    """An outcome as the journal has it: the bare value; with notes {"value", "notes"}; or {"cannot": why}."""
    if outcome.value is None:
        return {"cannot": outcome.problem}
    return {"value": outcome.value, "notes": list(outcome.notes)} if outcome.notes else outcome.value


def value_of(record: Any) -> Any:
    return record.get("value") if isinstance(record, dict) else record


def known_scores(folder: Path, retry_failed: bool = False) -> dict[str, Any]:
    """What the journals hold, by `unit_key`: see `to_record`. What is none of that counts as not there.

    Args:
        retry_failed: leave out what could not be scored.
    """
    known = {}
    for line in Journal.read(folder, "scores.*.jsonl"):
        for key, record in line.items() if isinstance(line, dict) else ():
            if is_number(value_of(record)) or (is_failure(record) and not retry_failed):
                known[key] = record
            elif is_failure(record):
                known.pop(key, None)
    return known


def is_failure(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("cannot"), str)


def same_failure(records: Iterable[Any]) -> bool:
    return all(map(is_failure, records)) and len({record["cannot"] for record in records}) == 1


def units_of(source: Any, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    given = {} if set(row["given_scores"]) == {None} else {"all_rm_scores": row["given_scores"]}
    return source.units(row["prompt"], row["scored_responses"], row["columns"] | given)


def score_share(
    source: Any,
    rows: list[dict[str, Any]],
    folder: Path,
    torch_dtype: str,
    retry_failed: bool,
    processes: Processes,
    make_team: Callable[[], Team] | None = None,
) -> None:
    """Score this process's share of the prompts; append every batch's values to its journal as one line.

    Where the first ones all fail for one reason, nothing else is tried: `apply_scores` says why.

    Args:
        make_team: of `Scorer`s, which score in place of this process.
    """
    import torch

    done = known_scores(folder, retry_failed)
    share = rows[processes.rank :: processes.count]
    parts = [share[start : start + source.chunk] for start in range(0, len(share), source.chunk)]
    chunks = [[unit for row in part for unit in units_of(source, row)] for part in parts]
    if all(unit_key(unit) in done for chunk in chunks for unit in chunk):
        return
    journal = Journal(folder, f"scores.{processes.rank}.jsonl")
    torch.backends.cuda.enable_cudnn_sdp(False)  # sdpa's first choice on an H100 plans anew for every shape

    def is_done(unit: tuple[Any, ...]) -> bool:
        return unit_key(unit) in done

    if make_team is None:
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        source.load(torch.device(gpu if torch.cuda.is_available() else "cpu"), getattr(torch, torch_dtype))
        scored = (source.score_batches(chunk, is_done) for chunk in chunks)
    else:
        scored = iter([score_with(make_team(), source, chunks, is_done)])
    if how := source.how():
        say(f"scoring: {how}")
    total = sum(not is_done(unit) for chunk in chunks for unit in set(chunk))
    with progress(total, "scoring", "response", disable=processes.rank > 0) as bar:
        for batches in scored:
            with closing(batches):
                for number, batch in enumerate(batches):
                    records = {unit_key(unit): to_record(outcome) for unit, outcome in batch}
                    journal.append(records)
                    done.update(records)
                    bar.update(len(batch))
                    if number and len(done) >= HOPELESS and same_failure(done.values()):
                        return


def split_thoughts(rows: list[dict[str, Any]], thinking: str, counts: Counter[str]) -> None:
    """Give each row `scored_responses`: with thinking "strip" what follows the thoughts (nothing, if they were cut).

    Counts the responses that think, and those that were cut, inside the thoughts or after.

    Raises:
        UserError: thinking is "fail" and a response thinks.
    """
    # a template that opens the block leaves answers with a closing tag only; without one they never got out
    texts = [response for row in rows for response in row["all_generated_responses"]]
    opened = any(closes_only(response) for response in texts)
    think = cut = inside = 0
    for row in rows:
        row["scored_responses"] = []
        for response, reason in zip(row["all_generated_responses"], row["finish_reasons"], strict=True):
            parts = split_thinking(response, opened)
            if parts.thoughts is not None and thinking == "fail":
                raise UserError(
                    f"thinking: a response to {name_of(row)} begins with thoughts ({response[:40]!r}); "
                    "--thinking strip scores what follows them, --thinking keep the whole"
                )
            think += parts.thoughts is not None
            inside += parts.cut
            cut += reason == "length" or parts.cut
            row["scored_responses"].append(parts.answer if thinking == "strip" else response)
    if think:
        scored = "scored without them" if thinking == "strip" else "scored whole"
        counts[f"responses with thoughts ({scored})"] = think
        counts["responses cut inside their thoughts"] = inside
        warn(f"{think} of {len(texts)} responses begin with thoughts ({scored}; see --thinking)")
    counts["responses known to be cut at their longest length"] = cut
    warn_of_cut(cut, len(texts))


def closes_only(response: str) -> bool:
    """Whether thoughts end in this response that did not begin in it."""
    opens = response.lstrip().startswith(tuple(opening for opening, _ in TAGS))
    return not opens and split_thinking(response).thoughts is not None


def apply_scores(source: Any, rows: list[dict[str, Any]], folder: Path, counts: Counter[str]) -> None:
    """Give each row `all_rm_scores`, with None where a response could not be scored; count those and say why.

    Raises:
        UserError: nothing could be scored.
    """
    known, problems, notes, total = known_scores(folder), Counter(), Counter(), 0
    example: dict[str, str] = {}
    for row in rows:
        units = units_of(source, row)
        records = [known.get(unit_key(unit)) for unit in units]
        row["all_rm_scores"] = source.combine([value_of(record) for record in records])
        for unit, record in zip(units, records, strict=True):
            notes.update(record.get("notes", ()) if isinstance(record, dict) else ())
            if value_of(record) is None:
                problem = record["cannot"] if record else NOT_TRIED
                problems[problem] += 1
                example.setdefault(problem, f"{str(unit[1])[:40]!r} to {name_of(row)}")
        total += sum(score is not None for score in row["all_rm_scores"])
    again = "--retry_failed tries them again"
    if not total:
        problem = max(problems.keys() - {NOT_TRIED}, key=problems.__getitem__)
        raise UserError(f"reward_model: no response can be scored: {problem} (such as {example[problem]}); {again}")
    for note, count in notes.items():
        counts[f"responses {note}"] = count
    if problems:
        failed = sum(score is None for row in rows for score in row["all_rm_scores"])
        counts["responses without a score"] = failed
        for problem, count in problems.most_common(3):
            warn(f"cannot be scored, {count} times: {problem} (such as {example[problem]}); {again}")
