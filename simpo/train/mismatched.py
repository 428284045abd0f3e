"""The policy's distance from the reference, estimated on prompts with other prompts' responses (KTO)."""

from collections.abc import Callable

import torch
from transformers import Trainer

from simpo.console import UserError
from simpo.data.mismatch import mismatched_rows, rows_of
from simpo.data.tokenize import PairTokenizer, PreferenceCollator
from simpo.logps.plain import ResponseLogps
from simpo.train.reference import Reference


class ReferencePoint:
    """The mean log-ratio of policy and reference over a batch's mismatched responses, but at least 0.

    Args:
        trainer: with its datasets of token ids.
        response_logps: from a model and a batch to the log-probabilities of its 2B responses.
        tokenizer: whose rules cut what is too long.
        stack: makes a batch of rows.

    Raises:
        UserError: there is one pair only.
    """

    def __init__(
        self,
        trainer: Trainer,
        reference: Reference,
        response_logps: Callable[[torch.nn.Module, dict[str, torch.Tensor]], ResponseLogps],
        tokenizer: PairTokenizer,
        stack: PreferenceCollator,
    ):
        self.trainer, self.reference, self.response_logps = trainer, reference, response_logps
        self.tokenizer, self.stack = tokenizer, stack
        rows = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
        rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
        if len(rows) < 2:
            raise UserError("train data: one pair is not enough: each prompt is run with another one's responses")
        self.lent_rows = [rows[0], rows[1]]

    def __call__(self, policy: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scalar without gradient, the same on all processes."""
        rows = rows_of(batch)
        if len(rows) == 1:  # the last batch may hold one pair: another one is lent to it
            own = rows[0]["chosen_input_ids"]
            rows.append(next((row for row in self.lent_rows if row["chosen_input_ids"] != own), self.lent_rows[0]))
        mixed = self.trainer._prepare_inputs(self.stack(mismatched_rows(rows, self.tokenizer)))
        with torch.no_grad():
            found = self.response_logps(policy, mixed)
            logps = found.means if self.reference.per_token else found.sums
            ratios = logps - self.reference.logps(policy, mixed)
            total = torch.stack([ratios.sum(), torch.full_like(ratios[0], len(ratios))])
            total = self.trainer.accelerator.reduce(total, "sum")
        return (total[0] / total[1]).clamp(min=0)
