"""The fast path: `plain_logps`'s results without the logits, with shared prompts and without padding.

A model's head computes logits for every token and the whole vocabulary, which no objective here needs. For the length
of a forward pass its `forward` is replaced by one that returns the log-probability of each label token, computed in
chunks and computed again in the backward pass. The model, its wrappers and their hooks run as they always do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from simpo.console import UserError
from simpo.logps.layout import attention_by_span, attention_inputs, lay_out
from simpo.logps.plain import ResponseLogps, row_sums

# Whose forward does nothing to the head's output but Gemma's soft-capping, and takes position ids and 4-D masks.
MODELS = {"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"}
# Logits in memory at a time: enough rows for matrix products to run at full speed.
CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}


class FastPath(NamedTuple):
    """What of the fast path a model can use."""

    fused: bool
    """Log-probabilities without the logits."""
    shared_prompt: bool
    padding_free: bool
    reason: str = ""
    """Why not fused."""

    def __str__(self) -> str:
        if not self.fused:
            return f"plain ({self.reason})" if self.reason else "plain"
        parts = [("without logits", True), ("shared prompts", self.shared_prompt), ("no padding", self.padding_free)]
        return ", ".join(name for name, used in parts if used)


def choose_path(model: PreTrainedModel, args: Any) -> FastPath:
    """The fastest exact path for a model that `args` (a PreferenceConfig) allows.

    Raises:
        UserError: a part is asked for that the model or its attention cannot do.
    """
    model = base_model(model)
    config, head = model.config, model.get_output_embeddings()
    reason = ""
    if config.model_type not in MODELS:
        reason = f"{config.model_type} models are not known to it"
    elif type(head) is not nn.Linear:
        reason = f"the head is a {type(head).__module__}.{type(head).__name__}"
    if args.fused_logps and reason:
        raise UserError(f"fused_logps: not for this model: {reason}")
    if reason or args.fused_logps is False:
        return FastPath(False, False, False, reason)
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager", "flash_attention_2"):
        if args.shared_prompt or args.padding_free:
            raise UserError(f"shared_prompt, padding_free: not with {attention} attention")
        return FastPath(True, False, False)
    masks = attention != "flash_attention_2"
    if args.shared_prompt and not masks:
        raise UserError("shared_prompt: flash_attention_2 has no such mask; use sdpa, or padding_free")
    # in one row a mask would cost more than the padding
    one_row = attention_by_span(config, args.max_length) if args.padding_free is None else args.padding_free
    return FastPath(True, masks if args.shared_prompt is None else args.shared_prompt, one_row)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside an adapter wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def fast_logps(
    model: nn.Module,
    core: PreTrainedModel,
    path: FastPath,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    label_pad_token_id: int = -100,
    with_weights: bool = False,
    chunk_logits: int | None = None,
) -> ResponseLogps:
    """The same as `plain_logps`, by another way.

    Args:
        model: what to call: the model in whatever wraps it (DeepSpeed, FSDP, DDP, adapters).
        core: the model itself.
        input_ids, attention_mask, labels: (2B, T) int64, the chosen ones first, padded on the right.
        chunk_logits: logits in memory at a time.
    """
    core = base_model(core)
    config, head = core.config, core.get_output_embeddings()
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    places = torch.arange(input_ids.numel(), device=input_ids.device).view(input_ids.shape)
    if path.shared_prompt or path.padding_free:
        layout = lay_out(input_ids, attention_mask, labels, label_pad_token_id, path.shared_prompt, path.padding_free)
        places = layout.places
        inputs = {"input_ids": layout.input_ids, "position_ids": layout.position_ids}
        inputs |= attention_inputs(layout, config, core.dtype)
    wanted = labels[:, 1:] != label_pad_token_id
    sources, targets = places[:, :-1][wanted], labels[:, 1:][wanted]
    real = attention_mask.bool()
    softcap = getattr(config, "final_logit_softcapping", None)
    found: dict[str, torch.Tensor] = {}

    def in_place_of_the_head(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        rows = max(1, (chunk_logits or CHUNK_LOGITS.get(flat.device.type, 2**27)) // head.weight.shape[0])
        logps, found["log_sum_squares"] = HeadLogps.apply(
            flat[sources], head.weight, head.bias, targets, softcap, rows, with_weights
        )
        found["mean_logits"] = mean_logits(flat.detach(), places[real], head, softcap, rows)
        return logps.view(1, -1, 1)

    with replaced_head(head, in_place_of_the_head, config):
        logps = model(**inputs, use_cache=False).logits.flatten()
    lengths = wanted.sum(dim=1)
    return ResponseLogps(
        sums=row_sums(logps, wanted),
        lengths=lengths,
        mean_logits=row_sums(found["mean_logits"], real) / real.sum(dim=1),
        log_weights=row_sums(logps.detach() - found["log_sum_squares"], wanted) / lengths if with_weights else None,
    )


@contextmanager
def replaced_head(head: nn.Module, forward: Callable, config: Any) -> Iterator[None]:
    """Give the head another forward, and keep the model from soft-capping what it returns."""
    own, softcap = head.__dict__.get("forward"), getattr(config, "final_logit_softcapping", None)
    head.forward = forward
    if softcap is not None:
        config.final_logit_softcapping = None
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own
        if softcap is not None:
            config.final_logit_softcapping = softcap


def compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The precision in which a linear layer would compute here."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class Logits:
    """Float32 logits of up to `rows` hidden states at a time, in memory that is used again (fresh memory costs a CPU as
    much time as the arithmetic on it)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None, rows: int):
        self.weight, self.bias, self.softcap = weight, bias, softcap
        self.product = weight.new_empty(rows, len(weight))
        self.logits = self.product if weight.dtype == torch.float32 else self.product.float()

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, V) float32 logits of (n, H) hidden states, until the next call."""
        logits, product = self.logits[: len(hidden)], self.product[: len(hidden)]
        torch.mm(hidden, self.weight.T, out=product)
        if product.dtype != torch.float32:
            logits.copy_(product)
        if self.bias is not None:
            logits += self.bias
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def cast(self, values: torch.Tensor) -> torch.Tensor:
        """(n, V) values in the weights' precision, until the next call of `of`."""
        return values if self.product is self.logits else self.product[: len(values)].copy_(values)


def mean_logits(
    flat: torch.Tensor, places: torch.Tensor, head: nn.Linear, softcap: float | None, rows: int
) -> torch.Tensor:
    """Mean over the vocabulary of the logits at N places: (N,) float32, without gradient."""
    dtype = compute_dtype(flat)
    with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
        if softcap is None:  # linear: the mean of the logits is the logit of the mean
            mean = flat.float() @ head.weight.mean(dim=0, dtype=torch.float32)
            return (mean if head.bias is None else mean + head.bias.float().mean())[places]
        logits = Logits(head.weight.to(dtype), head.bias, softcap, min(rows, len(flat)))
        found = torch.zeros(len(flat), dtype=torch.float32, device=flat.device)
        for some in places.unique().split(rows):
            found[some] = logits.of(flat[some].to(dtype)).mean(dim=1)
        return found[places]


class HeadLogps(torch.autograd.Function):
    """log softmax(head(hidden)) at the labels, with at most `rows` rows of logits in memory.

    With z the (soft-capped) logits and p their softmax, d logp_y / d z = 1[y] - p: the backward pass computes z again,
    chunk by chunk, and needs nothing of the forward pass but the log-sum-exp.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        softcap: float | None,
        rows: int,
        with_squares: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N,) and, with_squares, log sum_v p_v^2 (N,) without gradient, both float32.

        Args:
            hidden: (N, H); weight: (V, H); bias: (V,); labels: (N,) int64.
        """
        ctx.softcap, ctx.rows, ctx.dtype = softcap, min(rows, len(hidden)), compute_dtype(hidden)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        norms, squares = torch.empty_like(logps), torch.empty_like(logps)
        memory = Logits(weight.to(ctx.dtype), bias, softcap, ctx.rows)
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
        memory = Logits(weight.to(ctx.dtype), bias, ctx.softcap, ctx.rows)
        grad_hidden = torch.empty_like(hidden)
        # summed over the chunks in float32, whatever the weights' precision
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            inputs = hidden[part].to(ctx.dtype)
            logits = memory.of(inputs)
            slope = None if ctx.softcap is None else (logits / ctx.softcap).square_().neg_().add_(1)
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
