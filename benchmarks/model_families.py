"""The fast path against the plain one, on a tiny model of every family: values and every gradient.

    python benchmarks/model_families.py        # half a minute; writes docs/model_families.md

The models have two layers and random weights (float32). Windows of 7 tokens are shorter than the sequences, the scales
and soft-caps are such that leaving one out would show, and each config has one layer of each kind its family knows.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from simpo.logps.families import FAMILIES
from simpo.logps.fused import FastPath, choose_path, fast_logps
from simpo.logps.plain import ResponseLogps, plain_logps
from simpo.train.config import config_class

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "model_families.md"
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOW = {"sliding_window": 7}
BOTH = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
QWEN = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
CAPS = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
GRANITE = {"logits_scaling": 3.0, "attention_multiplier": 0.2, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama 2 and 3, Tulu 3, Yi, SmolLM 2", {}),
    "llama tied": ("Llama 3.2 1B", {"tie_word_embeddings": True}),
    "llama eager": ("the same, eager attention", {}),
    "mistral": ("Mistral 7B, Zephyr", WINDOW),
    "ministral3": ("Ministral 3", {}),
    "qwen2": ("Qwen 2 and 2.5", QWEN),
    "qwen3": ("Qwen 3", QWEN),
    "gemma": ("Gemma 1", {}),
    "gemma2": ("Gemma 2, whose scores sdpa does not cap", WINDOW | CAPS),
    "gemma2 eager": ("Gemma 2, as it is trained without FlashAttention", WINDOW | CAPS),
    "gemma3_text": ("Gemma 3 1B", BOTH | {"final_logit_softcapping": 3.0}),
    "phi": ("Phi 1.5 and 2", {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("Phi 3 and 4", WINDOW | {"partial_rotary_factor": 0.5}),
    "olmo": ("OLMo 1", {"clip_qkv": 1.5}),
    "olmo2": ("OLMo 2", {}),
    "olmo3": ("OLMo 3", BOTH),
    "granite": ("Granite 3", GRANITE),
    "smollm3": ("SmolLM 3", BOTH | {"use_sliding_window": True, "no_rope_layers": [0, 1]}),
    "cohere": ("Command R", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("Command R7B and A", BOTH | {"logit_scale": 0.25}),
    "stablelm": ("StableLM 2", {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "glm4": ("GLM 4", {"partial_rotary_factor": 0.5}),
    "exaone4": ("EXAONE 4", BOTH),
    "seed_oss": ("Seed-OSS", {}),
    "starcoder2": ("StarCoder 2", WINDOW),
    "gpt_neox": ("Pythia", {"rotary_pct": 0.5}),
    "mixtral": ("Mixtral", WINDOW | EXPERTS),
    "qwen2_moe": ("Qwen 1.5 and 2 MoE", QWEN | EXPERTS | {"moe_intermediate_size": 32}),
    "qwen3_moe": ("Qwen 3 MoE", WINDOW | EXPERTS | {"moe_intermediate_size": 32, "use_sliding_window": True}),
    "olmoe": ("OLMoE", EXPERTS),
    "granitemoe": ("Granite 3 MoE", EXPERTS | GRANITE),
    "gpt_oss eager": ("gpt-oss, whose attention sinks sdpa does not know", BOTH | EXPERTS),
}
"""Families (and the attention implementation, where it is not sdpa), what they are known by, and the tiny config."""

PLAIN = {
    "gpt2": "GPT-2",
    "opt": "OPT",
    "bloom": "BLOOM",
    "falcon": "Falcon",
    "falcon_h1": "Falcon H1",
    "qwen3_next": "Qwen 3 Next",
    "deepseek_v3": "DeepSeek 3",
}
PATHS = [FastPath(True, *flags) for flags in itertools.product((False, True), repeat=2)]


def attention(case: str) -> str:
    return "eager" if case.endswith(" eager") else "sdpa"


def tiny(case: str) -> PreTrainedModel:
    """A case's model in evaluation mode, its one-dimensional weights (of norms, biases) away from 0 and 1."""
    config = AutoConfig.for_model(case.split()[0], **SIZES | CASES[case][1])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention(case), dtype=torch.float32)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 1:
                weights += 0.2 * torch.randn_like(weights)
    return model.eval()


def make_batch(pairs: list[tuple[int, int, int, int]]) -> dict[str, torch.Tensor]:
    """Pairs of (prompt tokens, chosen tokens, rejected tokens, prompt tokens at the end that differ)."""
    torch.manual_seed(1)
    width = max(prompt + max(chosen, rejected) for prompt, chosen, rejected, _ in pairs)
    shape = (2 * len(pairs), width)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "labels": torch.full(shape, -100)}
    batch["attention_mask"] = torch.zeros(shape, dtype=torch.long)
    for number, (prompt, chosen, rejected, differ) in enumerate(pairs):
        ids = torch.randint(4, 300, (prompt,))
        for row, length in ((number, chosen), (number + len(pairs), rejected)):
            own = ids.clone()
            own[prompt - differ :] = torch.randint(4, 300, (differ,))
            response = torch.randint(4, 300, (length,))
            batch["input_ids"][row, : prompt + length] = torch.cat([own, response])
            batch["labels"][row, prompt : prompt + length] = response
            batch["attention_mask"][row, : prompt + length] = 1
    return batch


# long and short, a prompt whose last token differs, one-token responses, a prompt shared in part, no prompt at all
MIXED = make_batch([(12, 9, 17, 0), (20, 1, 1, 1), (3, 14, 2, 0), (9, 5, 5, 4), (0, 8, 6, 0)])


class Results(NamedTuple):
    logps: ResponseLogps
    gradients: dict[str, torch.Tensor]
    """Of a weighted sum of the responses' log-probabilities and ten times the router's loss, by parameter."""


def results(
    model: torch.nn.Module, path: FastPath | None = None, batch: dict[str, torch.Tensor] = MIXED, **memory: Any
) -> Results:
    """What a path says of a batch (None: the plain one)."""
    model.zero_grad()
    if path is None:
        found = plain_logps(model, **batch, with_weights=True)
    else:
        found = fast_logps(model, model, path, **batch, with_weights=True, **memory)
    torch.manual_seed(2)
    loss = (found.sums * torch.randn(len(found.sums)).to(found.sums)).sum()
    (loss if found.router_loss is None else loss + 10 * found.router_loss).backward()
    return Results(found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class Difference(NamedTuple):
    """The largest between two results."""

    values: float
    """Of log-probabilities (nats), mean logits, WPO's log-weights and the router's loss."""
    gradients: float
    """Of a parameter's gradient, relative to its largest entry (or to 1, where that is smaller)."""


def difference(found: Results, expected: Results) -> Difference:
    names = ["sums", "mean_logits", "log_weights"] + ["router_loss"] * (expected.logps.router_loss is not None)
    values = [(getattr(found.logps, name) - getattr(expected.logps, name)).abs().max().item() for name in names]
    assert found.gradients.keys() == expected.gradients.keys()
    gradients = [
        ((found.gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1)).item()
        for name, gradient in expected.gradients.items()
    ]
    return Difference(max(values), max(gradients))


def rows_of_the_table() -> list[str]:
    args, lines = config_class("simpo")(output_dir="unused", use_cpu=True, max_length=512, max_prompt_length=128), []
    for case, (known_by, _) in CASES.items():
        model = tiny(case)
        family, expected = model.config.model_type, results(model)
        head = FAMILIES[family]
        does = [f"times `{head.times}`"] * bool(head.times) + [f"divided by `{head.divided_by}`"] * bool(
            head.divided_by
        )
        does += [f"capped at `{head.softcap}`"] * bool(head.softcap)
        path = choose_path(model, args)
        by_path = [difference(results(model, path), expected) for path in PATHS]
        values, gradients = (max(column) for column in zip(*by_path, strict=True))
        lines.append(
            f"| `{family}` | {known_by} | {', '.join(does) or 'as they are'} | {attention(case)} | {path} "
            f"| {values:.0e} | {gradients:.0e} |"
        )
        print(lines[-1], file=sys.stderr)
    for family, known_by in PLAIN.items():
        with torch.device("meta"):  # the path is chosen by the shape alone
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, num_hidden_layers=2))
        lines.append(f"| `{family}` | {known_by} | - | - | {choose_path(model, args)} | - | - |")
    return lines


def main() -> None:
    table = "\n".join(rows_of_the_table())
    OUTPUT.write_text(
        f"""# Model families

Written by `python benchmarks/model_families.py`; `tests/test_fast_logps.py` checks the same. A family is
`model_type` in a model's config.json.

The fast path ("without logits, shared prompts, no padding") needs to know what a model does to its head's output; for
the families of `simpo/logps/families.py` it does. All others are trained by the plain path, and the start-up summary
says so. Whatever the table says, the first batch is tried by both paths on a few tokens, and a model for which they
differ is trained by the plain one, with a warning.

Differences are the largest over all layouts (padded or not, prompts shared or not) for a tiny model in float32: of
log-probabilities in nats (whole responses, about -60 each) with the other values that training reads, and of any
parameter's gradient, relative to its largest entry (to 1, where that is smaller). Both are what the order of float32
sums makes.

| family | known by | logits | attention | path | values | gradients |
|---|---|---|---|---|---|---|
{table}

Why those in the last rows are plain: BLOOM and some Falcons count positions along the row (ALiBi); Falcon H1 and
Qwen 3 Next carry a state along it, so that sequences in one row would see each other; the others were not proven.
Mixtures of experts route every token by itself, so that layouts change nothing; their router's loss counts a shared
prompt twice, as the plain path sees it. `gpt_oss` and Gemma 2 attend with the model's own eager function, piece by
piece: sdpa knows neither sinks nor capped scores. Flash attention and FlexAttention do; `tests/test_branches.py` has
their ways through the rows.

## Adding a family

Read its forward in `transformers/models/NAME/modeling_NAME.py`: what happens to the head's output up to
`logits`, that `position_ids` are used, and that masks come from `create_causal_mask` and its kin. Nothing may run along
a row but attention (no convolutions, no states). Then a line in `simpo/logps/families.py`, one in `CASES` of
`benchmarks/model_families.py`, and the test proves it or does not. As one script (a test runs it as it stands):

```python
from model_families import CAPS, CASES, PATHS, WINDOW, difference, results, tiny
from simpo.logps.families import FAMILIES, Head

# VaultGemma caps its logits at config.final_logit_softcapping, and does nothing else to them.
FAMILIES["vaultgemma"] = Head(softcap="final_logit_softcapping")
CASES["vaultgemma eager"] = ("VaultGemma 1B", WINDOW | CAPS)

model = tiny("vaultgemma eager")
expected = results(model)  # the plain path's values and gradients
for path in PATHS:  # padded or in one row, prompts shared or not
    off = difference(results(model, path), expected)
    assert off.values < 5e-5 and off.gradients < 1e-5, off
```
"""
    )


if __name__ == "__main__":
    main()
