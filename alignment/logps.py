"""Log-probabilities of responses: how they are computed, apart from what an objective does with them."""

from typing import NamedTuple

import torch


class TokenLogps(NamedTuple):
    """Log-probabilities of R responses, reduced over each one's label tokens."""

    sums: torch.Tensor
    """(R,) float32: log-probability of the whole response, in nats."""
    lengths: torch.Tensor
    """(R,) int64: number of label tokens."""
    mean_logits: torch.Tensor
    """(R,) float32, detached: mean of the logits over the vocabulary and over the sequence's real tokens."""

    @property
    def means(self) -> torch.Tensor:
        """(R,) float32: log-probability per token."""
        return self.sums / self.lengths


def token_logps(logits: torch.Tensor, labels: torch.Tensor, label_pad_token_id: int = -100) -> torch.Tensor:
    """Log-probability of each label token given what precedes it.

    The logits at position t predict the label at t + 1. Softmax in float32, at label positions only.

    Args:
        logits: (R, T, V), any float dtype.
        labels: (R, T) int64, `label_pad_token_id` where nothing is to be predicted.

    Returns:
        (R, T - 1) float32, zero where the label is `label_pad_token_id`.
    """
    labels = labels[:, 1:]
    mask = labels != label_pad_token_id
    picked = logits[:, :-1][mask].float()  # (number of label tokens, V)
    logps = picked.gather(1, labels[mask].unsqueeze(1)).squeeze(1) - picked.logsumexp(dim=1)
    return torch.zeros(labels.shape, dtype=torch.float32, device=logits.device).masked_scatter(mask, logps)


def get_batch_logps(
    logits: torch.Tensor,
    labels: torch.Tensor,
    average_log_prob: bool = True,
    label_pad_token_id: int = -100,
    is_encoder_decoder: bool = False,
) -> torch.Tensor:
    """Log-probability of each response under the given logits: (R,) float32, per token or summed.

    Args:
        logits: (R, T, V), any float dtype.
        labels: (R, T) int64; only tokens other than `label_pad_token_id` count.
        average_log_prob: divide by the number of label tokens (SimPO's length normalization).

    Raises:
        ValueError: the shapes differ, or an encoder-decoder model is asked for.
    """
    if is_encoder_decoder:
        raise ValueError("encoder-decoder models are not supported")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} differ in batch or length")
    sums = token_logps(logits, labels, label_pad_token_id).sum(dim=1)
    return sums / (labels[:, 1:] != label_pad_token_id).sum(dim=1) if average_log_prob else sums


def plain_logps(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    label_pad_token_id: int = -100,
) -> TokenLogps:
    """The readable reference: run the model, keep all logits, read off the label tokens.

    Args:
        input_ids, attention_mask, labels: (R, T) int64, padded on the right.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    return TokenLogps(
        sums=token_logps(logits, labels, label_pad_token_id).sum(dim=1),
        lengths=(labels[:, 1:] != label_pad_token_id).sum(dim=1),
        mean_logits=(logits.detach().float().mean(dim=-1) * attention_mask).sum(dim=1) / attention_mask.sum(dim=1),
    )
