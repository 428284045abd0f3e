"""Stand-ins for flash attention's kernels, which need a GPU: the same signature, in plain PyTorch."""

import torch


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, deterministic=False, s_aux=None,
):  # fmt: skip
    """q (N, heads, d); k, v (M, key heads, d); sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1]."""
    found = []
    for (start, end), (first, last) in zip(
        *(c.long().unfold(0, 2, 1) for c in (cu_seqlens_q, cu_seqlens_k)), strict=True
    ):
        assert end - start <= max_seqlen_q and last - first <= max_seqlen_k
        keys, values = (x[first:last].repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[start:end], keys) * (softmax_scale or q.shape[-1] ** -0.5)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        offset = torch.arange(last - first) - torch.arange(end - start)[:, None] - (last - first) + (end - start)
        if causal:
            scores = scores.masked_fill(offset > 0, -torch.inf)
        if window_size[0] >= 0:
            scores = scores.masked_fill(offset < -window_size[0], -torch.inf)
        if s_aux is not None:
            scores = torch.cat([scores, s_aux.view(-1, 1, 1).expand(-1, end - start, 1)], dim=2)
        found.append(torch.einsum("hij,jhd->ihd", scores.softmax(dim=2)[..., : last - first], values))
    return torch.cat(found)


def flash_attn_func(q, k, v, **kwargs):
    """q (B, T, heads, d); k, v (B, S, key heads, d)."""
    limits = [torch.arange(len(q) + 1, dtype=torch.int32) * part.shape[1] for part in (q, k)]
    flat = (part.flatten(0, 1) for part in (q, k, v))
    return flash_attn_varlen_func(*flat, *limits, q.shape[1], k.shape[1], **kwargs).view(q.shape)
