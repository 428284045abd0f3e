"""Supervised fine-tuning on conversations (column `messages`), with TRL's SFTTrainer.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_sft.py \
        training_configs/llama-3-8b-base-sft.yaml

The loss is on every token, or with completion_only_loss on the last answer's. Texts are rendered and tokenized here, so
that templates that write BOS get it once.
"""

from simpo.chat.format import apply_chat_template
from simpo.console import UserError, command
from simpo.data.load import get_datasets
from simpo.data.mapping import map_rows, tokenizer_key
from simpo.train.finish import train_and_save
from simpo.train.launcher import parse_arguments
from simpo.train.model import get_peft_config, get_tokenizer, load_policy
from simpo.train.run import start_run


@command
def main() -> None:
    from trl import SFTConfig, SFTTrainer

    model_args, data_args, args = parse_arguments(SFTConfig)
    checkpoint = start_run(model_args, data_args, args, objective="sft")
    tokenizer = get_tokenizer(model_args, data_args)

    def tokenize(row):
        messages = row["messages"]
        text = apply_chat_template(row, tokenizer, "sft", data_args.auto_insert_empty_system_msg)["text"]
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not args.completion_only_loss:
            return {"input_ids": ids}
        asked = apply_chat_template(
            {"messages": messages[:-1]}, tokenizer, "generation", data_args.auto_insert_empty_system_msg
        )["text"]
        start = len(tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"])
        return {"input_ids": ids, "completion_mask": [int(position >= start) for position in range(len(ids))]}

    with args.main_process_first(desc="preparing data"):
        splits = {}
        for split, dataset in get_datasets(data_args).items():
            if "messages" not in dataset.column_names:
                raise UserError(f"{split} data: has no column messages (found: {', '.join(dataset.column_names)})")
            splits[split] = map_rows(
                dataset,
                tokenize,
                ("sft", tokenizer_key(tokenizer), data_args.auto_insert_empty_system_msg, args.completion_only_loss),
                data_args.preprocessing_num_workers,
                remove_columns=dataset.column_names,
                desc=f"Tokenizing {split}",
            )
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
