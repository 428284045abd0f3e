"""Whether the fast log-probabilities are the plain ones on a GPU: 30 batches of pairs answered greedily, in bf16.

    python benchmarks/gpu_parity.py [--device cpu --hidden 64 --layers 2 --vocabulary 512]

A random model continues each prompt greedily (chosen) and its prompt's reverse (rejected). The plain path in float32
says what is right; how far the plain path in bf16 is from that is bf16's own noise. The fast path in bf16 may be as far
from it, and half as much again.
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simpo.logps.fused import FastPath, fast_logps
from simpo.logps.plain import plain_logps

CHECKS, ROOM = 30, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers, num_attention_heads=max(1, args.hidden // 64),
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(args.device).eval()
    noise, fast = [], []
    for check in range(CHECKS):
        batch = greedy_pairs(model, prompt=8 + 3 * check, response=16 + 5 * check)
        right, rounded, other = logps(model, batch)
        noise.append((rounded - right).abs().max().item())
        fast.append((other - right).abs().max().item())
    worst, allowed = max(fast), ROOM * max(noise)
    print(f"{CHECKS} checks on {args.device}: fast path at most {worst:.2e} from float32, plain path {max(noise):.2e}")
    if not worst <= allowed:
        raise SystemExit(f"the fast path is further from the plain one than bf16 explains ({allowed:.2e})")


@torch.no_grad()
def greedy_pairs(model: LlamaForCausalLM, prompt: int, response: int) -> dict[str, torch.Tensor]:
    """Two pairs that share their prompts, (4, T), the chosen ones first."""
    prompts = torch.randint(model.config.vocab_size, (2, prompt), device=model.device)
    answers = [
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=response, max_new_tokens=response,
            pad_token_id=0,
        )[:, prompt:]
        for ids in (prompts, prompts.flip(1))
    ]  # fmt: skip
    ids = torch.cat([torch.cat([prompts, answer], dim=1) for answer in answers])
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@torch.no_grad()
def logps(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Log-probabilities per token, (4,) float32 each: plain in float32, plain in bf16, fast in bf16."""
    found = [plain_logps(model, **batch).means]
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        found.append(plain_logps(model, **batch).means)
        found.append(fast_logps(model, model, FastPath(True, True, True), **batch).means)
    return found


if __name__ == "__main__":
    main()
