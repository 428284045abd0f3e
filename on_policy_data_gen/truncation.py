"""Responses that were cut, by max_tokens or the context: counted wherever they pass, because they are trained on."""

from typing import Any

from simpo.chat.thinking import opens_thinking, split_thinking
from simpo.console import warn

FEW = 0.05


def is_cut(row: dict[str, Any]) -> bool:
    """Whether the response of an output_{seed}.json row was cut, or never came out of its thoughts."""
    prompt = row.get("format_prompt")  # the original's rows may be without
    opened = isinstance(prompt, str) and opens_thinking(prompt)
    return row.get("finish_reason") == "length" or split_thinking(row["generated_text"], opened).cut


def warn_of_cut(cut: int, total: int) -> None:
    """Warn where more than a few responses of `total` were cut."""
    if total and cut / total > FEW:
        warn(
            f"{cut} of {total} responses ({100 * cut / total:.0f} %) were cut at their longest length, and training "
            "puts an end where they stop: decode with a larger --max_tokens, or --drop_truncated in post_process.py"
        )
