"""What the policy answers while it trains (`generate_during_eval`)."""

import json
from pathlib import Path

import torch
from transformers import Trainer

PROMPTS = 4
NEW_TOKENS = 256


def write_generations(trainer: Trainer) -> None:
    """Append greedy answers to the first evaluation prompts to output_dir/generations.jsonl.

    One line per prompt: {step, prompt, generation}. Every process generates (under ZeRO-3 each holds a part of the
    weights), the main one writes.
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
        with (Path(trainer.args.output_dir) / "generations.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
