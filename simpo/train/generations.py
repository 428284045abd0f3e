"""What the policy answers while it trains (`generate_during_eval`)."""

from pathlib import Path

import torch
from transformers import Trainer

from simpo.files import read_own_rows, write_rows

GENERATIONS = "generations.jsonl"
FIELDS = {"step": int, "prompt": str, "generation": str}
PROMPTS = 4
NEW_TOKENS = 256


def write_generations(trainer: Trainer) -> None:
    """Add greedy answers to the first evaluation prompts to output_dir/generations.jsonl.

    One line per prompt: {step, prompt, generation}. Every process generates (under ZeRO-3 each holds a part of the
    weights), the main one writes. Lines of steps that this run has not evaluated before go: a run that was stopped
    after its last checkpoint wrote them, and makes the steps again.
    """
    dataset = trainer.eval_dataset
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()))
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model_wrapped)
    lines = []
    for ids in dataset.select(range(min(PROMPTS, len(dataset))))["prompt_input_ids"]:
        prompt = torch.tensor([ids], device=trainer.args.device)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=min(NEW_TOKENS, max(1, trainer.args.max_length - len(ids))),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                synced_gpus=trainer.args.world_size > 1,
            )
        prompt_text, text = tokenizer.decode(ids), tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        lines.append({"step": trainer.state.global_step, "prompt": prompt_text, "generation": text})
    if trainer.is_world_process_zero():
        now = trainer.state.global_step
        history = trainer.state.log_history
        evaluated = {entry["step"] for entry in history if any(key.startswith("eval_") for key in entry)}
        path = Path(trainer.args.output_dir) / GENERATIONS
        earlier = read_own_rows(path, FIELDS)
        write_rows(path, [row for row in earlier if row["step"] in evaluated - {now}] + lines)


def mend_generations(folder: Path) -> None:
    """Keep the whole lines of an earlier run's file, if it is torn."""
    rows = read_own_rows(folder / GENERATIONS, FIELDS)
    if rows and not (folder / GENERATIONS).exists():  # set aside
        write_rows(folder / GENERATIONS, rows)
