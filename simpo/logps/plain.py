"""Log-probabilities of responses: how they are computed, apart from what an objective does with them."""

from typing import NamedTuple

import torch


class ResponseLogps(NamedTuple):
    """Log-probabilities of R responses, reduced over each one's label tokens."""

    sums: torch.Tensor
    """(R,) float32: log-probability of the whole response, in nats."""
    lengths: torch.Tensor
    """(R,) int64: number of label tokens."""
    mean_logits: torch.Tensor
    """(R,) float32, detached: mean of the logits over the vocabulary and over the sequence's real tokens."""
    log_weights: torch.Tensor | None = None
    """(R,) float32, detached: mean over label tokens of log p(y_t) - log sum_v p(v)^2, for `wpo_weights`."""
    router_loss: torch.Tensor | None = None
    """Scalar: how unevenly a mixture of experts spread all real tokens, where its config says output_router_logits
    (Switch Transformers, arXiv 2101.03961). To be weighted with the config's router_aux_loss_coef."""

    @property
    def means(self) -> torch.Tensor:
        """(R,) float32: log-probability per token."""
        return self.sums / self.lengths


def label_logits(
    logits: torch.Tensor, labels: torch.Tensor, label_pad_token_id: int = -100
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick the logits that predict a label: those at position t predict the label at t + 1.

    Args:
        logits: (R, T, V), any float dtype.
        labels: (R, T) int64, `label_pad_token_id` where nothing is to be predicted.

    Returns:
        The N label tokens' logits (N, V) in float32, their labels (N,), and where they are, (R, T - 1) bool.
    """
    labels = labels[:, 1:]
    mask = labels != label_pad_token_id
    return logits[:, :-1][mask].float(), labels[mask], mask


def selected_logps(picked: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log softmax of float32 logits (N, V) at labels (N,): (N,)."""
    return picked.gather(1, labels.unsqueeze(1)).squeeze(1) - picked.logsumexp(dim=1)


def row_sums(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum N values, in the order of the true entries of `mask` (R, T), over each row: (R,)."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values).sum(dim=1)


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
    picked, picked_labels, mask = label_logits(logits, labels, label_pad_token_id)
    sums = row_sums(selected_logps(picked, picked_labels), mask)
    return sums / mask.sum(dim=1) if average_log_prob else sums


def plain_logps(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    label_pad_token_id: int = -100,
    with_weights: bool = False,
) -> ResponseLogps:
    """The readable reference: run the model, keep all logits, read off the label tokens.

    Args:
        input_ids, attention_mask, labels: (R, T) int64, padded on the right.
        with_weights: also compute `log_weights`.
    """
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    logits = outputs.logits
    picked, picked_labels, mask = label_logits(logits, labels, label_pad_token_id)
    logps, lengths = selected_logps(picked, picked_labels), mask.sum(dim=1)
    log_weights = None
    if with_weights:
        with torch.no_grad():
            # log sum p^2 = logsumexp(2z) - 2 logsumexp(z)
            log_sum_squares = (2 * picked).logsumexp(dim=1) - 2 * picked.logsumexp(dim=1)
            log_weights = row_sums(logps - log_sum_squares, mask) / lengths
    return ResponseLogps(
        sums=row_sums(logps, mask),
        lengths=lengths,
        mean_logits=(logits.detach().float().mean(dim=-1) * attention_mask).sum(dim=1) / attention_mask.sum(dim=1),
        log_weights=log_weights,
        router_loss=outputs.get("aux_loss"),
    )
