"""The prompts with their candidate responses, and off-policy responses to put beside them."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from conversations import Prompt, check_unicode, prompt_text, read_prompt
from simpo.chat.rows import join_parts
from simpo.console import UserError, first_few, say, warn
from tables import read_table

MADE = {  # fields that the scripts here make; any other is a column of the prompt's row, and travels with it
    *("prompt", "format_prompt", "generated_text", "finish_reason", "num_tokens", "all_generated_responses"),
    *("finish_reasons", "all_rm_scores", "chosen", "rejected", "messages", "completions"),
}
FORMS = "all_generated_responses (a list), chosen and rejected, or completions (a list)"
COMPLETION_SCORES = ("overall_score", "fine-grained_score")  # UltraFeedback's
PER_RESPONSE = ("all_generated_responses", "finish_reasons", "given_scores")


def read_candidates(data: str, key: str) -> list[dict[str, Any]]:
    """Read the prompts of a file or of DATA:SPLIT (see `read_table`) with their responses, and scores if there are any.

    Rows of the same prompt become one. Rows and responses that cannot be scored are left out, with a warning.

    Returns:
        Rows of prompt, columns (the others of the prompt's row), and lists of one length: all_generated_responses,
        finish_reasons and given_scores (None: not known).

    Raises:
        UserError: not such a file, or no row is left.
    """
    rows: dict[Prompt, dict[str, Any]] = {}
    left_out, merged = [], 0
    for place, item in read_table(data, key):
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
        raise UserError(f"{key}: {data} holds no rows to use" + (f" ({left_out[0]})" if left_out else ""))
    if left_out:
        warn(f"{key}: {data}: {len(left_out)} rows left out ({first_few(left_out)})")
    if merged:
        warn(f"{key}: {data}: {merged} rows repeat a prompt: their responses are put together")
    return list(rows.values())


def read_row(row: Any, least: int = 2) -> dict[str, Any]:
    """Raises ValueError, saying why, for a row without a prompt and `least` responses to it."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with {FORMS}")
    try:
        prompt = read_prompt(row.get("prompt", row.get("instruction", row.get("chosen"))))
    except ValueError as error:
        raise ValueError(f"the prompt {error}") from error
    name, responses, scores = read_responses(row)
    good = [i for i, response in enumerate(responses) if is_text(response)]
    if len(good) < least:
        raise ValueError(f"{name} must hold {'two texts or more' if least == 2 else 'a text'}")
    if isinstance(scores, list) and len(scores) != len(responses):
        raise ValueError(f"there are {len(scores)} scores of {len(responses)} responses")

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


def read_responses(row: dict[str, Any]) -> tuple[str, list[Any], Any]:
    """The name of the column that holds a row's responses, the responses, and their scores if it has some: as annotate
    writes them, as a pair, or as UltraFeedback has them.

    Raises:
        ValueError: it has none of these forms.
    """
    if isinstance(row.get("all_generated_responses"), list):
        return "all_generated_responses", row["all_generated_responses"], row.get("all_rm_scores")
    if {"chosen", "rejected"} <= row.keys():
        sides = ("chosen", "rejected")
        return "a pair", [last_answer(row[side]) for side in sides], [row.get(f"score_{side}") for side in sides]
    if isinstance(row.get("completions"), list):
        parts = [part if isinstance(part, dict) else {} for part in row["completions"]]
        # one kind of score a prompt: the others are on another scale
        name = next((name for name in COMPLETION_SCORES if any(is_number(part.get(name)) for part in parts)), "")
        return "completions", [part.get("response") for part in parts], [part.get(name) for part in parts]
    raise ValueError(f"has none of {FORMS}")


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


def add_responses(rows: list[dict[str, Any]], data: str) -> Counter[str]:
    """Add the data's responses to the candidates of the same prompt, in place (WPO's hybrid setting).

    Responses that are there already are not added again; rows that cannot be used are left out.

    Args:
        data: as for `read_candidates`; one response a row is enough.

    Returns:
        How many responses were added, and how many rows were left out.

    Raises:
        UserError: no prompt of the data is among the candidates.
    """
    extra: dict[Prompt, list[dict[str, Any]]] = defaultdict(list)
    bad = []
    for place, item in read_table(data, "extra_responses"):
        try:
            row = read_row(item, least=1)
        except ValueError as error:
            bad.append(f"{place}: {error}")
            continue
        extra[row["prompt"]].append(row)
    if not extra.keys() & {row["prompt"] for row in rows}:
        why = f" ({bad[0]})" if bad else ""
        raise UserError(f"extra_responses: no prompt of {data} is among the prompts to annotate{why}")
    counts = Counter({"extra responses added": 0})
    for row in rows:
        for more in extra.get(row["prompt"], ()):
            for number, response in enumerate(more["all_generated_responses"]):
                if response not in row["all_generated_responses"]:
                    for name in PER_RESPONSE:
                        row[name].append(more[name][number])
                    counts["extra responses added"] += 1
    if bad:
        counts["extra_responses rows left out"] = len(bad)
        warn(f"extra_responses: {data}: {len(bad)} rows left out ({first_few(bad)})")
    return counts


def check_scores(rows: list[dict[str, Any]], reward_model: str) -> None:
    """Raises a UserError where the rows' own scores are asked for, and they have none; says where they are replaced."""
    scored = sum(any(score is not None for score in row["given_scores"]) for row in rows)
    if reward_model == "given" and not scored:
        raise UserError(
            "reward_model: given, but the rows have no scores: all_rm_scores beside all_generated_responses, "
            "score_chosen and score_rejected beside chosen and rejected, or "
            f"{' or '.join(COMPLETION_SCORES)} in completions"
        )
    if reward_model != "given" and scored:
        say(f"{scored} prompts bring scores, which {reward_model} replaces (--reward_model given uses them)")


def name_of(row: dict[str, Any]) -> str:
    """The beginning of a row's prompt, for messages."""
    return repr(prompt_text(row["prompt"])[:60])
