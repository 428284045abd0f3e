"""The prompts with their candidate responses, and off-policy responses to put beside them."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conversations import Prompt, check_unicode, prompt_text, read_prompt
from simpo.chat.rows import join_parts
from simpo.console import UserError, first_few, warn
from simpo.files import read_list

MADE = {  # fields that the scripts here make; any other is a column of the prompt's row, and travels with it
    *("prompt", "format_prompt", "generated_text", "finish_reason", "num_tokens", "all_generated_responses"),
    *("finish_reasons", "all_rm_scores", "chosen", "rejected", "messages"),
}
PER_RESPONSE = ("all_generated_responses", "finish_reasons", "given_scores")


def read_candidates(path: Path, key: str) -> list[dict[str, Any]]:
    """Read rows of {prompt, all_generated_responses}; where the file has them finish_reasons and scores; and `columns`.

    A row of preference data, with chosen and rejected, counts as one of two responses. Rows of the same prompt become
    one. Rows and responses that cannot be scored are left out, with a warning.

    Returns:
        Rows of prompt, columns (the others of the prompt's row), and lists of one length: all_generated_responses,
        finish_reasons and given_scores (None: not known).

    Raises:
        UserError: not such a file, or no row is left.
    """
    rows: dict[Prompt, dict[str, Any]] = {}
    left_out, merged = [], 0
    for place, item in read_list(path, key):
        try:
            row = read_row(item)
        except ValueError as error:
            left_out.append(f"{place}: {error}")
            continue
        if known := rows.get(row["prompt"]):
            merged += 1
            for name in PER_RESPONSE:
                known[name] += row[name]
        else:
            rows[row["prompt"]] = row
    if not rows:
        raise UserError(f"{key}: {path} holds no rows to use" + (f" ({left_out[0]})" if left_out else ""))
    if left_out:
        warn(f"{key}: {path}: {len(left_out)} rows left out ({first_few(left_out)})")
    if merged:
        warn(f"{key}: {path}: {merged} rows repeat a prompt: their responses are put together")
    return list(rows.values())


def read_row(row: Any) -> dict[str, Any]:
    """Raises ValueError, saying why, for a row without a prompt and two responses to it."""
    if not isinstance(row, dict) or not ("all_generated_responses" in row or {"chosen", "rejected"} <= row.keys()):
        raise ValueError("must be an object with prompt and all_generated_responses")
    try:
        prompt = read_prompt(row.get("prompt", row.get("chosen")))
    except ValueError as error:
        raise ValueError(f"the prompt {error}") from error
    responses, scores = row.get("all_generated_responses"), row.get("all_rm_scores")
    if responses is None:
        responses = [last_answer(row.get(side)) for side in ("chosen", "rejected")]
        scores = [row.get(f"score_{side}") for side in ("chosen", "rejected")]
    responses = responses if isinstance(responses, list) else []
    good = [i for i, response in enumerate(responses) if is_text(response)]
    if len(good) < 2:
        raise ValueError("all_generated_responses must hold two texts or more")

    def beside(values: Any, fits: Callable[[Any], bool]) -> list[Any]:
        """One value for each good response."""
        whole = isinstance(values, list) and len(values) == len(responses)
        return [values[i] if whole and fits(values[i]) else None for i in good]

    return {
        "prompt": prompt,
        "all_generated_responses": [responses[i] for i in good],
        "finish_reasons": beside(row.get("finish_reasons"), lambda value: isinstance(value, str)),
        "given_scores": beside(scores, is_number),
        "columns": {name: value for name, value in row.items() if name not in MADE},
    }


def last_answer(side: Any) -> Any:
    """The response in one side of a pair, which is a text or a list of messages."""
    return (
        join_parts(side[-1].get("content")) if isinstance(side, list) and side and isinstance(side[-1], dict) else side
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        check_unicode(value)
    except ValueError:
        return False
    return True


def add_responses(rows: list[dict[str, Any]], path: Path) -> Counter[str]:
    """Add the file's responses to the candidates of the same prompt, in place (WPO's hybrid setting).

    A row of the file has `prompt` (or the conversation in `chosen`) and either `all_generated_responses`, or `chosen`
    and `rejected` as text or as messages, of which the last is the response. Responses that are there already are not
    added again; rows of neither form are left out.

    Returns:
        How many responses were added, and how many rows were left out.

    Raises:
        UserError: no prompt of the file is among the candidates.
    """
    extra: dict[Prompt, list[str]] = defaultdict(list)
    bad = []
    for place, row in read_list(path, "extra_responses"):
        try:
            prompt, responses = read_extra(row)
            extra[prompt] += responses
        except ValueError as error:
            bad.append(f"{place}: {error}")
    if not extra.keys() & {row["prompt"] for row in rows}:
        why = f" ({bad[0]})" if bad else ""
        raise UserError(f"extra_responses: no prompt of {path} is among the prompts to annotate{why}")
    counts = Counter({"extra responses added": 0})
    for row in rows:
        for response in dict.fromkeys(extra.get(row["prompt"], [])):
            if response not in row["all_generated_responses"]:
                for name, value in zip(PER_RESPONSE, (response, None, None), strict=True):
                    row[name].append(value)
                counts["extra responses added"] += 1
    if bad:
        counts["extra_responses rows left out"] = len(bad)
        warn(f"extra_responses: {path}: {len(bad)} rows left out, such as {bad[0]}")
    return counts


def read_extra(row: Any) -> tuple[Prompt, list[str]]:
    """The prompt and the responses of a row in either form.

    Raises:
        ValueError: it has neither form.
    """
    if not isinstance(row, dict):
        raise ValueError("must be an object")
    prompt = read_prompt(row.get("prompt", row.get("chosen")))
    responses = row.get("all_generated_responses")
    if responses is None:
        responses = [last_answer(row.get(side)) for side in ("chosen", "rejected")]
    if not isinstance(responses, list) or not all(map(is_text, responses)):
        raise ValueError(
            "needs a prompt, and either all_generated_responses (texts) or chosen and rejected (texts or messages)"
        )
    return prompt, responses


def name_of(row: dict[str, Any]) -> str:
    """The beginning of a row's prompt, for messages."""
    return repr(prompt_text(row["prompt"])[:60])
