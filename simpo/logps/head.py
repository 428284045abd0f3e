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
        self.size = (rows, len(weight))
        self.product = self.logits = None

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, V) float32 logits of (n, H) hidden states, until the next call."""
        if self.product is None:
            self.product = self.weight.new_empty(self.size)
        if self.weight.dtype == torch.float32:
            self.logits = self.product
        elif self.logits is None:
            self.logits = torch.empty(self.size, dtype=torch.float32, device=self.weight.device)
        logits, product = self.logits[: len(hidden)], self.product[: len(hidden)]
        scale, softcap = self.shape
        torch.addmm(product, hidden, self.weight.T, beta=0, alpha=scale, out=product)  # 0: what was there is not read
        if product.dtype != torch.float32:
            logits.copy_(product)
        if self.bias is not None:
            logits.add_(self.bias, alpha=scale)
        return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """(n, V) d logits / d (scaled output); None where it is 1."""
        softcap = self.shape.softcap
        return None if softcap is None else (logits / softcap).square_().neg_().add_(1)

    def derivative(
        self, probabilities: torch.Tensor, labels: torch.Tensor, slope: torch.Tensor | None, keep: bool = False
    ) -> torch.Tensor:
        """(n, V) d logp / d (scaled output) in the weights' precision, written over the probabilities.

        Args:
            keep: for good, not only until the next call of `of`.
        """
        derivative = probabilities.neg_()
        derivative.scatter_add_(1, labels.unsqueeze(1), torch.ones_like(derivative[:, :1]))
        if slope is not None:
            derivative.mul_(slope)
        if self.product is not self.logits:
            derivative = self.product[: len(derivative)].copy_(derivative)
        if keep:
            self.product = None
        return derivative


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
    """log softmax(head(hidden)) at the labels, with at most `rows` rows of logits in memory (and `keep` bytes).

    With z the (scaled, soft-capped) logits and p their softmax, d logp_y / d z = 1[y] - p = D, whatever the loss does
    with logp. So a frozen head needs two matrix products, both in the forward pass: z and d logp / d hidden = D W. A
    trained one needs W's gradient as well, a sum of D's rows weighted by the loss's gradients: D is kept where `keep`
    allows (three products), and else computed again in the backward pass (four).
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
        keep: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N,) and, with_squares, log sum_v p_v^2 (N,) without gradient, both float32.

        Args:
            hidden: (N, H); weight: (V, H); bias: (V,); labels: (N,) int64.
        """
        ctx.shape, ctx.rows, ctx.dtype = shape, min(rows, len(hidden)), compute_dtype(hidden)
        trained = any(ctx.needs_input_grad[1:3])
        directions = torch.empty_like(hidden) if ctx.needs_input_grad[0] and not trained else None
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        norms, squares = torch.empty_like(logps), torch.empty_like(logps)
        memory = Logits(weight.to(ctx.dtype), bias, shape, ctx.rows)
        chunk_bytes = ctx.rows * memory.weight.element_size() * len(weight)
        ctx.kept = {}
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            keeps = trained and ctx.needs_input_grad[0] and (len(ctx.kept) + 1) * chunk_bytes <= keep
            logits = memory.of(hidden[part].to(ctx.dtype))
            of_label, largest = logits.gather(1, labels[part].unsqueeze(1)).squeeze(1), logits.amax(dim=1)
            slope = memory.slope(logits) if keeps or directions is not None else None
            scaled = logits.sub_(largest.unsqueeze(1)).exp_()
            total = scaled.sum(dim=1)
            norms[part] = total.log() + largest
            logps[part] = of_label - norms[part]
            if with_squares:
                squares[part] = 2 * (torch.linalg.vector_norm(scaled, dim=1) / total).log()
            if keeps or directions is not None:
                derivative = memory.derivative(scaled.div_(total.unsqueeze(1)), labels[part], slope, keeps)
                if keeps:
                    ctx.kept[start] = derivative
                else:
                    directions[part] = derivative @ memory.weight
        ctx.frozen = directions is not None
        ctx.save_for_backward(*(directions,) if ctx.frozen else (hidden, weight, bias, labels, norms))
        ctx.mark_non_differentiable(squares)
        return logps, squares

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = (grad * ctx.shape.scale).unsqueeze(1)
        if ctx.frozen:
            (directions,) = ctx.saved_tensors
            return (directions * grad).to(directions.dtype), *(None,) * 7
        hidden, weight, bias, labels, norms = ctx.saved_tensors
        memory = Logits(weight.to(ctx.dtype), bias, ctx.shape, ctx.rows)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # summed over the chunks in float32, whatever the weights' precision
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            inputs, derivative = hidden[part].to(ctx.dtype), ctx.kept.pop(start, None)
            if derivative is None:
                logits = memory.of(inputs)
                slope = memory.slope(logits)
                probabilities = logits.sub_(norms[part].unsqueeze(1)).exp_()
                derivative = memory.derivative(probabilities, labels[part], slope)
            weighted = (inputs * grad[part]).to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = derivative @ memory.weight * grad[part]
            if grad_bias is not None:
                grad_bias += derivative.T.float() @ grad[part].squeeze(1)
            if grad_weight is None:
                continue
            if ctx.dtype == torch.float32:
                grad_weight.addmm_(derivative.T, weighted, beta=float(start > 0))  # 0: what was there is not read
            elif start == 0:
                grad_weight.copy_(derivative.T @ weighted)
            else:
                grad_weight += derivative.T @ weighted
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            *(None,) * 5,
        )
