"""Conversations to token ids when the contents come from a model or a user and may spell special tokens.

An answer that quotes `<|eot_id|>` must stay text: as a token it would end the message and move whatever is read at the
template's own tokens. So only the template may produce special tokens; in the contents their spelling is tokenized as
ordinary characters. Contents without such spellings are tokenized in one piece with the template.
"""

import re
from uuid import uuid4

from transformers import PreTrainedTokenizerBase

from simpo.chat.answers import render_whole
from simpo.chat.template import Messages, render


class ContentGuard:
    """Marks special tokens spelt out in contents, so that they survive the template as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.specials = sorted(specials | set(tokenizer.all_special_tokens), key=len, reverse=True)
        mark = uuid4().hex  # no content can hold it
        self.find_special = re.compile("|".join(map(re.escape, self.specials)) or r"(?!)")
        self.find_mark = re.compile(f"{mark}-([0-9]+)-{mark}")
        self.mark = f"{mark}-%d-{mark}"

    def protect(self, content: str) -> str:
        """Replace every special token's spelling by a mark."""
        return self.find_special.sub(lambda match: self.mark % self.specials.index(match[0]), content)

    def restore(self, text: str) -> str:
        """Undo `protect`."""
        return self.find_mark.sub(lambda match: self.specials[int(match[1])], text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text whose contents were protected; no special tokens are added."""
        ids: list[int] = []
        for position, piece in enumerate(self.find_mark.split(text)):
            if position % 2:  # the number inside a mark
                piece = self.specials[int(piece)]
            if piece:
                plain = bool(position % 2)
                ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        return ids


def chat_ids(guard: ContentGuard, messages: Messages, add_generation_prompt: bool = False) -> tuple[str, list[int]]:
    """Render a conversation; return its text and its token ids, special tokens as the template writes them.

    Raises:
        UserError: the template refuses it, or leaves something out of a conversation that ends with an answer.
    """
    protected = [m if m["content"] is None else m | {"content": guard.protect(m["content"])} for m in messages]
    if protected[-1]["role"] == "assistant" and not add_generation_prompt:
        text = render_whole(guard.tokenizer, protected)
    else:
        text = render(guard.tokenizer, protected, add_generation_prompt)
    return guard.restore(text), guard.ids(text)


def with_one_bos(ids: list[int], bos: int | None) -> list[int]:
    """Put BOS first exactly once, whether or not the template wrote it (training does the same)."""
    if bos is None:
        return ids
    while ids[:1] == [bos]:
        ids = ids[1:]
    return [bos, *ids]
