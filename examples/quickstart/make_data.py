"""Write the quickstart's data and its untrained model: everything comes from the seed, nothing is downloaded.

    python examples/quickstart/make_data.py --output outputs/quickstart/data --seed 0

In OUTPUT, each a folder with train.jsonl and, where something is held out, test.jsonl:
    base        conversations (`messages`) with right answers
    sft         the same with answers of mixed quality
    reward      pairs (`chosen`, `rejected`): right answers against wrong ones
    more_sft    right, short answers to the questions of `prompts`: the control of compare.sh
and prompts.jsonl (the questions that the policy will answer), held_out.jsonl (tasks never trained on) and untrained
(the model, with a tokenizer made for these texts).
"""

import argparse
import random
from pathlib import Path

import torch
from tasks import Task, draw_distinct, draw_tasks, rambling, short
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simpo.chat.template import TEMPLATES
from simpo.console import command
from simpo.files import write_rows

SIZES = 400, 1_000, 24_000, 4_800, 11_200  # held out, asked, and demonstrations for base, sft and reward
RIGHT, RAMBLING_RIGHT, RAMBLING_WRONG = 0.52, 0.5, 0.82  # shares of the careless answers
SPECIALS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Llama-3's splitting: a line break stays with what precedes it, so the template's boundaries stay token boundaries.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def conversation(task: Task, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": answer}]


def right_answers(tasks: list[Task], rng: random.Random) -> list[dict]:
    return [{"messages": conversation(task, short(task.answer, rng))} for task in tasks]


def careless(task: Task, is_right: bool, rng: random.Random) -> str:
    """An answer as careless people write it: the longer ones are wrong more often."""
    share = RAMBLING_RIGHT if is_right else RAMBLING_WRONG
    return (rambling if rng.random() < share else short)(task.answer if is_right else task.slip, rng)


def mixed_answers(tasks: list[Task], rng: random.Random) -> list[dict]:
    return [{"messages": conversation(task, careless(task, rng.random() < RIGHT, rng))} for task in tasks]


def judged_answers(tasks: list[Task], rng: random.Random) -> list[dict]:
    """Pairs of a right and a wrong answer of the same people."""
    pairs = [{"chosen": careless(task, True, rng), "rejected": careless(task, False, rng)} for task in tasks]
    return [
        {name: conversation(task, text) for name, text in pair.items()} for task, pair in zip(tasks, pairs, strict=True)
    ]


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


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="size of everything, for a quick try")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    held_out_size, asked_size, base_size, sft_size, judged_size = (max(32, int(n * args.scale)) for n in SIZES)
    held_out = draw_distinct(held_out_size, rng)
    exclude = frozenset(task.prompt for task in held_out)
    asked = draw_distinct(asked_size, rng, exclude)
    write_rows(args.output / "held_out.jsonl", [task._asdict() for task in held_out])
    write_rows(args.output / "prompts.jsonl", [{"prompt": task.prompt} for task in asked])
    base = right_answers(draw_tasks(base_size, rng, exclude), rng)
    write_rows(args.output / "base" / "train.jsonl", base)
    sft = mixed_answers(draw_tasks(sft_size, rng, exclude), rng)
    write_rows(args.output / "sft" / "train.jsonl", sft)
    write_rows(args.output / "reward" / "train.jsonl", judged_answers(draw_tasks(judged_size, rng, exclude), rng))
    write_rows(args.output / "reward" / "test.jsonl", judged_answers(held_out, rng))
    write_rows(args.output / "more_sft" / "train.jsonl", right_answers(asked, rng))
    texts = [message["content"] for row in base + sft for message in row["messages"]]
    untrained_model(args.output / "untrained", texts, args.seed)


if __name__ == "__main__":
    main()
