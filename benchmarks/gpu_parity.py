"""Whether the fast log-probabilities are the plain ones on a GPU: 30 batches of pairs answered greedily, in bf16.

    python benchmarks/gpu_parity.py [--attention flash_attention_2] [--device cpu --hidden 64 --layers 2]

A random model continues each prompt greedily (chosen) and its prompt's reverse (rejected). The plain path in float32
with sdpa says what is right; how far that path in bf16 is from it is bf16's own noise. The fast path in bf16, with the
attention that is asked for, may be as far from it, and half as much again.
"""

import argparse
import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sides import size
from simpo.logps.fused import FastPath, fast_logps
from simpo.logps.plain import plain_logps
from train_step import add_size

CHECKS, ROOM = 30, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", default="sdpa")
    add_size(parser, hidden=1024, layers=4, device="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    with torch.device(args.device):
        model = LlamaForCausalLM._from_config(LlamaConfig(**size(args)), attn_implementation="sdpa").eval()
    noise, fast = [], []
    for check in range(CHECKS):
        model.set_attn_implementation("sdpa")
        batch = greedy_pairs(model, prompt=8 + 3 * check, response=16 + 5 * check)
        right, rounded, other = logps(model, batch, args.attention)
        noise.append((rounded - right).abs().max().item())
        fast.append((other - right).abs().max().item())
    worst, allowed = max(fast), ROOM * max(noise)
    text = f"{CHECKS} checks on {args.device}: fast path at most {worst:.2e} from float32, plain path {max(noise):.2e}"
    if not worst <= allowed:
        raise SystemExit(f"{text}: more than bf16 explains ({allowed:.2e})")
    print("RESULT " + json.dumps({"text": text}))


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
def logps(model: LlamaForCausalLM, batch: dict[str, torch.Tensor], attention: str) -> list[torch.Tensor]:
    """Log-probabilities per token, (4,) float32 each: plain in float32, plain in bf16, fast in bf16 by `attention`."""
    found = [plain_logps(model, **batch).means]
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        found.append(plain_logps(model, **batch).means)
        model.set_attn_implementation(attention)
        found.append(fast_logps(model, model, FastPath(True, True, True), **batch).means)
    return found


if __name__ == "__main__":
    main()
