"""A model's head and the log-softmax at the labels as one function, with a bounded number of logits in memory."""

from typing import Any

import torch
from torch import nn

from simpo.logps.families import LogitShape


def compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The precision in which a linear layer would compute here."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class Logits:
    """Float32 logits of up to `rows` hidden states at a time, in memory that is used again (fresh memory costs a CPU as
    much time as the arithmetic on it)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, shape: LogitShape, rows: int):
        self.weight, self.bias, self.shape = weight, bias, shape
        self.product = weight.new_empty(rows, len(weight))
        self.logits = self.product if weight.dtype == torch.float32 else self.product.float()

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, V) float32 logits of (n, H) hidden states, until the next call."""
        logits, product = self.logits[: len(hidden)], self.product[: len(hidden)]
        scale, softcap = self.shape
        torch.addmm(product, hidden, self.weight.T, beta=0, alpha=scale, out=product)  # 0: what was there is not read
        if product.dtype != torch.float32:
            logits.copy_(product)
        if self.bias is not None:
            logits.add_(self.bias, alpha=scale)
        return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)

    def cast(self, values: torch.Tensor) -> torch.Tensor:
        """(n, V) values in the weights' precision, until the next call of `of`."""
        return values if self.product is self.logits else self.product[: len(values)].copy_(values)


def mean_logits(
    flat: torch.Tensor, places: torch.Tensor, head: nn.Linear, shape: LogitShape, rows: int
) -> torch.Tensor:
    """Mean over the vocabulary of the logits at N places: (N,) float32, without gradient."""
    dtype = compute_dtype(flat)
    with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
        if shape.softcap is None:  # linear: the mean of the logits is the logit of the mean
            mean = flat.float() @ head.weight.mean(dim=0, dtype=torch.float32)
            return shape.scale * (mean if head.bias is None else mean + head.bias.float().mean())[places]
        logits = Logits(head.weight.to(dtype), head.bias, shape, min(rows, len(flat)))
        found = torch.zeros(len(flat), dtype=torch.float32, device=flat.device)
        for some in places.unique().split(rows):
            found[some] = logits.of(flat[some].to(dtype)).mean(dim=1)
        return found[places]


class HeadLogps(torch.autograd.Function):
    """log softmax(head(hidden)) at the labels, with at most `rows` rows of logits in memory.

    With z the (scaled, soft-capped) logits and p their softmax, d logp_y / d z = 1[y] - p: the backward pass computes z
    again, chunk by chunk, and needs nothing of the forward pass but the log-sum-exp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        shape: LogitShape,
        rows: int,
        with_squares: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N,) and, with_squares, log sum_v p_v^2 (N,) without gradient, both float32.

        Args:
            hidden: (N, H); weight: (V, H); bias: (V,); labels: (N,) int64.
        """
        ctx.shape, ctx.rows, ctx.dtype = shape, min(rows, len(hidden)), compute_dtype(hidden)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        norms, squares = torch.empty_like(logps), torch.empty_like(logps)
        memory = Logits(weight.to(ctx.dtype), bias, shape, ctx.rows)
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits = memory.of(hidden[part].to(ctx.dtype))
            of_label, largest = logits.gather(1, labels[part].unsqueeze(1)).squeeze(1), logits.amax(dim=1)
            scaled = logits.sub_(largest.unsqueeze(1)).exp_()
            log_sum = scaled.sum(dim=1).log()
            norms[part] = log_sum + largest
            logps[part] = of_label - norms[part]
            if with_squares:
                squares[part] = scaled.square_().sum(dim=1).log() - 2 * log_sum
        ctx.save_for_backward(hidden, weight, bias, labels, norms)
        ctx.mark_non_differentiable(squares)
        return logps, squares

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, norms = ctx.saved_tensors
        memory = Logits(weight.to(ctx.dtype), bias, ctx.shape, ctx.rows)
        scale, softcap = ctx.shape
        grad = grad * scale
        grad_hidden = torch.empty_like(hidden)
        # summed over the chunks in float32, whatever the weights' precision
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            inputs = hidden[part].to(ctx.dtype)
            logits = memory.of(inputs)
            slope = None if softcap is None else (logits / softcap).square_().neg_().add_(1)
            delta = logits.sub_(norms[part].unsqueeze(1)).exp_().mul_(-grad[part].unsqueeze(1))
            delta.scatter_add_(1, labels[part].unsqueeze(1), grad[part].unsqueeze(1))
            if slope is not None:
                delta.mul_(slope)
            if grad_bias is not None:
                grad_bias += delta.sum(dim=0)
            delta = memory.cast(delta)
            grad_hidden[part] = delta @ memory.weight
            if grad_weight is None:
                continue
            if ctx.dtype == torch.float32:
                grad_weight.addmm_(delta.T, inputs, beta=float(start > 0))  # 0: what was there is not read
            elif start == 0:
                grad_weight.copy_(delta.T @ inputs)
            else:
                grad_weight += delta.T @ inputs
        return (
            grad_hidden if ctx.needs_input_grad[0] else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            *(None,) * 4,
        )
