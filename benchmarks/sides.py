"""What train_step.py compares: cases and their sides, and the training and measuring of one side in its own process."""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Case(NamedTuple):
    """What is trained, and by which sides; the last one is what the others are compared with.

    Sides: ours; recomputed (ours, the head computed again in the backward pass: with logits_memory 0, and for a frozen
    head as it once was); tokens (ours by max_tokens_per_micro_batch); plain (ours without the fast path); trl.
    """

    sides: tuple[str, ...]
    prompt: int
    """Tokens, each drawn between `spread` times this."""
    response: int
    spread: tuple[float, float] = (0.5, 1.5)
    objective: str = "simpo"
    """wpo: TRL does not cut its weights at 1, which those of these random models do not reach."""
    lora: bool = False
    batches: int = 1
    """Of --pairs pairs each, accumulated to a step."""


CASES = {
    "short": Case(("ours", "recomputed", "trl"), 60, 400),
    "lora": Case(("ours", "recomputed"), 60, 400, lora=True),
    "mixed": Case(("tokens", "ours"), 30, 60, spread=(0.1, 3.0), batches=8),
    "dpo": Case(("ours", "trl"), 60, 400, objective="dpo"),
    "wpo": Case(("ours", "trl"), 60, 400, objective="wpo"),
    "long": Case(("ours", "recomputed", "trl"), 800, 400),
}
SIDES = ("ours", "recomputed", "tokens", "plain", "trl")


def size(args: argparse.Namespace) -> dict[str, Any]:
    """Of a Llama-like model, as its config has it."""
    return {
        "vocab_size": args.vocabulary,
        "hidden_size": args.hidden,
        "intermediate_size": args.hidden * 11 // 4,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
        "num_key_value_heads": args.hidden // 64,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
    }


def make_model(args: argparse.Namespace, folder: str) -> None:
    """A tokenizer and a config, for random weights made where they are used. BOS is the tokenizer's own: TRL's
    CPOTrainer puts one in front in any case, as we do, and its DPOTrainer only what the tokenizer puts."""
    from transformers import LlamaConfig

    from tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer(adds_bos=True)
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaConfig(**size(args), **ends).save_pretrained(folder)


def make_rows(case: Case, count: int) -> list[dict[str, str]]:
    """Texts in which every word is one token or two of the tiny tokenizer; the same for every side."""
    chance, words = random.Random(0), ["the", " capital", " France", " days", " week", " water", " sky", " is", " in"]

    def text(tokens: int) -> str:
        return "".join(chance.choices(words, k=max(1, int(tokens * chance.uniform(*case.spread) / 1.2))))

    return [
        {"prompt": text(case.prompt), "chosen": text(case.response), "rejected": text(case.response)}
        for _ in range(count)
    ]


def make_trainer(args: argparse.Namespace, side: str, case: Case, dtype: str, model: str, **kwargs: Any) -> Any:
    """A side's trainer, everything of the training but the side being the same."""
    import torch
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM

    def load() -> Any:
        torch.manual_seed(0)
        weights = dtype if case.lora else "float32"
        with torch.device(args.device):
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(model), dtype=getattr(torch, weights), attn_implementation=args.attention
            )

    settings = {
        "max_length": 2048, "max_steps": args.steps, "use_cpu": args.device == "cpu",
        "per_device_train_batch_size": args.pairs, "gradient_accumulation_steps": case.batches, "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-6, "disable_tqdm": True,
        "bf16": dtype == "bfloat16", "gradient_checkpointing": False, "train_sampling_strategy": "sequential",
        "beta": 2.0 if case.objective == "simpo" else 0.1, "optim": "adamw_torch_fused",
        "remove_unused_columns": False, "output_dir": kwargs.pop("output_dir"),
    }  # fmt: skip
    if case.lora:
        kwargs["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    if side == "trl" and case.objective == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        of_trl = CPOConfig(**settings, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=1.0)
        return CPOTrainer(load(), args=of_trl, **kwargs)
    if side == "trl":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer(load(), load(), args=DPOConfig(**settings, use_weighting=case.objective == "wpo"), **kwargs)
    from simpo.train.config import config_class
    from simpo.train.trainer import PreferenceTrainer

    settings |= {
        "ours": {},
        "recomputed": {"logits_memory": 0.0},
        "tokens": {"max_tokens_per_micro_batch": args.tokens},
        "plain": {"fused_logps": False},
    }[side]
    if case.objective == "simpo":
        settings["gamma_beta_ratio"] = 0.5
    if side == "recomputed" and case.lora:
        compute_the_head_again()
    ours = config_class(case.objective)(**settings, max_prompt_length=1500)
    reference = load() if ours.declaration.reference else None
    return PreferenceTrainer(load(), ours, ref_model=reference, **kwargs)


def compute_the_head_again() -> None:
    """Let a frozen head do as a trained one without memory does, but for its own gradient."""
    from simpo.logps.head import HeadLogps

    forward = HeadLogps.forward

    def as_if_trained(ctx: Any, *inputs: Any) -> Any:
        asked = ctx.needs_input_grad
        ctx.needs_input_grad = (asked[0], True, *asked[2:])
        found = forward(ctx, *inputs)
        ctx.needs_input_grad = asked
        return found

    HeadLogps.forward = staticmethod(as_if_trained)


def train(args: argparse.Namespace, side: str, name: str, dtype: str, model: str) -> dict[str, Any]:
    """Train for a few steps; seconds of each step, peak memory, and the work that had to be done."""
    import torch
    import trl  # noqa: F401 (its imports' memory is no side's)
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    case, seconds = CASES[name], []
    rows = Dataset.from_list(make_rows(case, args.pairs * case.batches * args.steps))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    torch.backends.cuda.enable_cudnn_sdp(False)  # as our programs do; for every side, or its plans would be measured
    rate = matmul_rate(torch, dtype, args)
    before = memory(torch, args.device, "VmRSS")

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        kwargs = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [Clock()], "output_dir": folder}
        trainer = make_trainer(args, side, case, dtype, model, **kwargs)
        trainer.train()
    weights = sum(p.nbytes for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    floor = weights + 12 * trained + (0 if case.objective == "simpo" else weights)  # with a reference
    counted_rows = rows.select(range(args.pairs * case.batches, len(rows)))  # without the first step's
    work, counted = useful_work(tokenizer, counted_rows, trainer.model, case, args), sum(seconds[1:])
    return {
        "seconds": [round(s, 3) for s in seconds],
        "step": statistics.median(seconds[1:]),
        "tokens_per_second": work["tokens"] / counted,
        "peak_above_floor_gb": (memory(torch, args.device) - before - floor) / 1e9,
        "share_of_matmul_rate": work["flop"] / counted / rate,
        "matmul_gflops": rate / 1e9,
        "loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
    }


def useful_work(tokenizer: Any, rows: Any, policy: Any, case: Case, args: argparse.Namespace) -> dict[str, float]:
    """Tokens of both sequences, and floating point operations if nothing is done twice or for nothing.

    Per weight and token 2 forward, 2 backward and 2 more for the gradient of a trained weight, and 2 for a reference;
    each prompt once, the head for response tokens only; and per layer, hidden size and pair of tokens of which one
    attends to the other 12, and 4 for a reference.
    """
    model = policy.get_base_model() if case.lora else policy
    head = model.lm_head.weight.numel()
    layers = sum(p.numel() for p in model.model.layers.parameters())
    of_reference = 0 if case.objective == "simpo" else 2
    per_weight, per_attended = (4 if case.lora else 6) + of_reference, 12 + 2 * of_reference
    tokens = flop = 0
    for row in rows:
        prompt, *responses = (len(tokenizer(row[name])["input_ids"]) for name in ("prompt", "chosen", "rejected"))
        tokens += 2 * prompt + sum(responses)
        attended = prompt**2 / 2 + sum(prompt * response + response**2 / 2 for response in responses)
        flop += per_weight * (layers * (prompt + sum(responses)) + head * sum(responses))
        flop += per_attended * args.layers * args.hidden * attended
    return {"tokens": tokens, "flop": flop}


def matmul_rate(torch: Any, dtype: str, args: argparse.Namespace) -> float:
    """Floating point operations per second of a large matrix product, the best of five."""
    width = 4 * args.hidden
    a = torch.randn(width, width, dtype=getattr(torch, dtype), device=args.device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if args.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best


def memory(torch: Any, device: str, of_process: str = "VmHWM") -> int:
    """Most bytes used so far, of the GPU or the process; with VmRSS those used now."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if of_process == "VmHWM" else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(of_process))
