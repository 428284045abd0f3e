"""Write the quickstart's data and its untrained model: everything comes from the seed, nothing is downloaded.

    python examples/quickstart/make_data.py --output outputs/quickstart --seed 0

Writes OUTPUT/data/sft/train.jsonl (conversations, column `messages`), OUTPUT/data/held_out.jsonl (tasks never trained
on) and OUTPUT/models/untrained.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tasks import Task, draw_distinct, draw_tasks, rambling, short
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.chat import TEMPLATES

HELD_OUT = 400
SPECIALS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Llama-3's splitting: a line break stays with what precedes it, so the template's boundaries stay token boundaries.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def conversation(task: Task, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": answer}]


def demonstrations(count: int, rng: random.Random, exclude: frozenset[str]) -> list[dict]:
    """Answered tasks as people write them: some wrong, half of them rambling."""
    rows = []
    for task in draw_tasks(count, rng, exclude):
        answer = task.slip if rng.random() < 0.3 else task.answer
        style = rng.choice([short, rambling])
        rows.append({"messages": conversation(task, style(answer, rng))})
    return rows


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def untrained_model(folder: Path, texts: list[str], seed: int) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATES["llama3"].read_text(),
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    held_out = draw_distinct(HELD_OUT, rng)
    exclude = frozenset(task.prompt for task in held_out)
    data = args.output / "data"
    write(data / "held_out.jsonl", [task._asdict() for task in held_out])
    sft = demonstrations(9_000, rng, exclude)
    write(data / "sft" / "train.jsonl", sft)
    texts = [message["content"] for row in sft for message in row["messages"]]
    untrained_model(args.output / "models" / "untrained", texts, args.seed)


if __name__ == "__main__":
    main()
