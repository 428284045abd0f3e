"""Supervised fine-tuning on conversations (column `messages`), with TRL's SFTTrainer.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_sft.py \
        training_configs/llama-3-8b-base-sft.yaml

The loss is on every token, or with completion_only_loss on the last answer's. `packing: true` with
`packing_strategy: wrapped` puts conversations one after the other and cuts every max_length tokens, as the published
SFT models were trained.
"""

from simpo.console import command
from simpo.data.conversations import tokenize_conversations
from simpo.train.finish import train_and_save
from simpo.train.launcher import parse_arguments
from simpo.train.model import get_peft_config, get_tokenizer, load_policy
from simpo.train.run import load_splits, start_run


@command
def main() -> None:
    from trl import SFTConfig, SFTTrainer

    model_args, data_args, args = parse_arguments(SFTConfig)
    checkpoint = start_run(model_args, data_args, args, objective="sft")
    tokenizer = get_tokenizer(model_args, data_args)
    longest = None if args.packing else args.max_length
    with args.main_process_first(desc="preparing data"):
        splits = {
            name: tokenize_conversations(rows, tokenizer, data_args, name, longest, bool(args.completion_only_loss))
            for name, rows in load_splits(data_args, args, "messages").items()
        }
    trainer = SFTTrainer(
        model=load_policy(model_args, args, checkpoint),
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits.get("test"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    card = {"dataset_name": ", ".join(data_args.dataset_mixer), "tags": ["sft"]}
    train_and_save(trainer, model_args, data_args, checkpoint, objective="sft", card=card)


if __name__ == "__main__":
    main()
