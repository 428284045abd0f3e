"""Sequence classifiers with one label: most reward models."""

import torch
from transformers import AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

from rewards.decoder import Decoder
from simpo.console import UserError


class Classifier(Decoder):
    """Decoders are read at the end of a conversation; encoders as `model(**tokenizer(prompt, response))`."""

    name = "classifier"
    model_class = AutoModelForSequenceClassification

    def check(self) -> None:
        if self.config.num_labels != 1:
            raise UserError(
                f"reward_model: {self.argument} has {self.config.num_labels} labels and no head that is known here; a "
                "reward model must have one label, or be ArmoRM or PairRM"
            )

    def is_known(self) -> bool:
        return type(self.model).forward is GenericForSequenceClassification.forward

    def places(self, ids: list[int]) -> list[int]:
        """The last token that is not the pad token, as that forward finds it."""
        return [next((place for place in reversed(range(len(ids))) if ids[place] != self.pad), 0)]

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.score(hidden[:, 0]).squeeze(-1)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model, GenericForSequenceClassification):
            # a decoder: padding on the right is never looked at, and without a mask attention is faster
            return self.model(input_ids=inputs["input_ids"], use_cache=False).logits.squeeze(-1)
        return self.model(**inputs).logits.squeeze(-1)


SOURCE = Classifier
