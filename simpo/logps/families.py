"""What each family of models does to its head's output: all that the fast path knows about them.

A family may stand here when its forward takes position ids, builds its masks by transformers' mask functions and does
nothing to the logits but what is declared. docs/model_families.md holds the proof for each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import PreTrainedModel


class Head(NamedTuple):
    """logits = softcap * tanh(x / softcap), x = output * times / divided_by; each the name of a number, if any."""

    times: str | None = None
    """An attribute of the model."""
    divided_by: str | None = None
    """A setting of the config, as is the next."""
    softcap: str | None = None


AS_IT_IS, CAPPED = Head(), Head(softcap="final_logit_softcapping")
TIMES, DIVIDED = Head(times="logit_scale"), Head(divided_by="logits_scaling")
FAMILIES: dict[str, Head] = {
    "cohere": TIMES,
    "cohere2": TIMES,
    "exaone4": AS_IT_IS,
    "gemma": AS_IT_IS,
    "gemma2": CAPPED,
    "gemma3_text": CAPPED,
    "glm4": AS_IT_IS,
    "gpt_neox": AS_IT_IS,
    "gpt_oss": AS_IT_IS,
    "granite": DIVIDED,
    "granitemoe": DIVIDED,
    "llama": AS_IT_IS,
    "ministral3": AS_IT_IS,
    "mistral": AS_IT_IS,
    "mixtral": AS_IT_IS,
    "olmo": AS_IT_IS,
    "olmo2": AS_IT_IS,
    "olmo3": AS_IT_IS,
    "olmoe": AS_IT_IS,
    "phi": AS_IT_IS,
    "phi3": AS_IT_IS,
    "qwen2": AS_IT_IS,
    "qwen2_moe": AS_IT_IS,
    "qwen3": AS_IT_IS,
    "qwen3_moe": AS_IT_IS,
    "seed_oss": AS_IT_IS,
    "smollm3": AS_IT_IS,
    "stablelm": AS_IT_IS,
    "starcoder2": AS_IT_IS,
}
"""By config.model_type."""


class LogitShape(NamedTuple):
    """The numbers of one model: logits = softcap * tanh(scale * output / softcap)."""

    scale: float = 1.0
    softcap: float | None = None


def logit_shape(model: PreTrainedModel) -> LogitShape:
    head = FAMILIES[model.config.model_type]
    times = getattr(model, head.times) if head.times else 1.0
    divided_by = getattr(model.config, head.divided_by) if head.divided_by else 1.0
    return LogitShape(times / divided_by, getattr(model.config, head.softcap) if head.softcap else None)


@contextmanager
def replaced_head(model: PreTrainedModel, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Give the model's head another forward, whose output the model does nothing to."""
    family, config = FAMILIES[model.config.model_type], model.config
    changes: list[tuple[object, str, object]] = [(model.get_output_embeddings(), "forward", forward)]
    changes += [(model, family.times, 1.0)] if family.times else []
    changes += [(config, family.divided_by, 1.0)] if family.divided_by else []
    changes += [(config, family.softcap, None)] if family.softcap else []
    before = [vars(owner).get(name, ...) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            if value is ...:  # the class's
                delattr(owner, name)
            else:
                setattr(owner, name, value)
