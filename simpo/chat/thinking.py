"""Models that think before they answer: the block of thoughts and the answer after it."""

from typing import NamedTuple

# What opens and closes a block of thoughts: DeepSeek-R1, Qwen3 and most others; spelt out; Magistral; Seed-OSS; Kimi.
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)


class Thinking(NamedTuple):
    """A response taken apart."""

    thoughts: str | None
    """The block with its tags; None: the response does not begin with one."""
    answer: str
    """What follows the block, without the white space between; empty when the block was never closed."""

    @property
    def cut(self) -> bool:
        """Whether the response ended inside its thoughts."""
        return self.thoughts is not None and not self.thoughts.endswith(tuple(close for _, close in TAGS))


def split_thinking(text: str, opened: bool = False) -> Thinking:
    """Take the block of thoughts off the beginning of a response.

    A template may write the opening tag into the prompt, so a closing tag with no opening one before it ends a block
    too. Tags further inside a response, as in an answer about them, are text.

    Args:
        opened: whether the prompt ended in an opening tag: without a closing one, all of `text` is thoughts.
    """
    body = text.lstrip()
    for opening, closing in TAGS:
        if body.startswith(opening) or (closing in body and opening not in body.partition(closing)[0]):
            thoughts, closed, answer = text.partition(closing)
            return Thinking(thoughts + closed, answer.lstrip())
    return Thinking(text, "") if opened else Thinking(None, text)


def opens_thinking(prompt: str) -> bool:
    """Whether a formatted prompt ends in the opening tag of a block of thoughts."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in TAGS))


def after_thinking(text: str) -> str:
    """What a judge says after its thoughts: after the LAST closing tag, since thoughts may quote one; nothing when a
    block was opened and never closed; else the whole text."""
    end = max((text.rfind(closing) + len(closing) for _, closing in TAGS if closing in text), default=0)
    if end:
        return text[end:].strip()
    return split_thinking(text).answer
