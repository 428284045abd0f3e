"""What becomes of the thoughts in answers of models that think: --thinking strip, keep or fail."""

from typing import Any, Literal

from records import shorten
from simpo.chat.thinking import split_thinking
from simpo.console import UserError, say, warn

Thinking = Literal["strip", "keep", "fail"]
HELP = "Thoughts (<think>...</think>) in answers: strip them, keep them, or fail."


def take_off(
    policy: str, answers: dict[Any, list[str]], where: str, opened: dict[Any, list[bool]] | None = None
) -> dict[Any, list[str]]:
    """Answers as they are judged: without a complete block of thoughts (strip), or as they are (keep).

    An answer that ended inside its thoughts has nothing to judge: it becomes the empty text. Counts are printed.

    Args:
        answers: {question: the text of each turn}.
        opened: whether the prompt of each turn ended in the tag that opens the thoughts, where that is known.

    Raises:
        UserError: an answer holds thoughts, and the policy is "fail".
    """
    stripped, cut, taken = 0, 0, {}
    for key, texts in answers.items():
        began = opened[key] if opened else [False] * len(texts)
        parts = [split_thinking(text, begun) for text, begun in zip(texts, began, strict=True)]
        found = [part for part in parts if part.thoughts is not None]
        if found and policy == "fail":
            raise UserError(f"{where}: the answer to {shorten(str(key))!r} holds thoughts (--thinking fail)")
        cut += sum(part.cut for part in found)
        stripped += sum(not part.cut for part in found)
        taken[key] = [part.answer for part in parts]
    if policy == "keep":
        if stripped or cut:
            warn(f"{where}: {stripped + cut} answers hold thoughts, which are kept and judged (--thinking keep)")
        return answers
    if stripped:
        say(f"{where}: the thoughts of {stripped} answers are left out (--thinking keep leaves them in)")
    if cut:
        warn(f"{where}: {cut} answers were cut inside their thoughts, and count as empty")
    return taken
