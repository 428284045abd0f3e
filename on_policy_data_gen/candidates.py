"""The prompts with their candidate responses, and off-policy responses to put beside them."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from simpo.console import UserError
from simpo.files import read_list, read_rows


def read_candidates(path: Path, key: str) -> list[dict[str, Any]]:
    """Read rows of {prompt, all_generated_responses}; other fields are left out.

    Raises:
        UserError: not such a file, a prompt is empty or comes twice, or has fewer than two responses.
    """
    fields = {"prompt": str, "all_generated_responses": list}
    rows, seen = [], set()
    for number, row in enumerate(read_rows(path, key, fields)):
        prompt, responses = row["prompt"], row["all_generated_responses"]
        where = f"{key}: {path}, row {number}"
        if not prompt.strip() or prompt in seen:
            raise UserError(f"{where}: the prompt is {'repeated' if prompt in seen else 'empty'}; remove the row")
        if len(responses) < 2 or not all(isinstance(response, str) for response in responses):
            raise UserError(f"{where}: all_generated_responses must hold two texts or more")
        seen.add(prompt)
        rows.append({"prompt": prompt, "all_generated_responses": list(responses)})
    if not rows:
        raise UserError(f"{key}: {path} holds no rows")
    return rows


def add_responses(rows: list[dict[str, Any]], path: Path) -> int:
    """Add the file's responses to the candidates of the same prompt, in place (WPO's hybrid setting).

    A row of the file has `prompt` and either `all_generated_responses`, or `chosen` and `rejected` as text or as
    messages, of which the last is the response. Responses that are there already are not added again.

    Returns:
        How many responses were added.

    Raises:
        UserError: a row has neither form, or no prompt of the file is among the candidates.
    """
    extra: dict[str, list[str]] = defaultdict(list)
    for place, row in read_list(path, "extra_responses"):
        responses = responses_of(row) if isinstance(row, dict) and isinstance(row.get("prompt"), str) else None
        if responses is None:
            raise UserError(
                f"extra_responses: {path}, {place}: needs a prompt (text), and either all_generated_responses (texts) "
                "or chosen and rejected (texts or messages)"
            )
        extra[row["prompt"]] += responses
    if not extra.keys() & {row["prompt"] for row in rows}:
        raise UserError(f"extra_responses: no prompt of {path} is among the prompts to annotate")
    added = 0
    for row in rows:
        for response in dict.fromkeys(extra.get(row["prompt"], [])):
            if response not in row["all_generated_responses"]:
                row["all_generated_responses"].append(response)
                added += 1
    return added


def responses_of(row: dict[str, Any]) -> list[str] | None:
    """The responses of a row in either form; None when it has neither."""
    responses = row.get("all_generated_responses")
    if responses is None:
        sides = (row.get("chosen"), row.get("rejected"))  # texts, or lists of messages
        responses = [
            s[-1].get("content") if isinstance(s, list) and s and isinstance(s[-1], dict) else s for s in sides
        ]
    return responses if isinstance(responses, list) and all(isinstance(r, str) for r in responses) else None
