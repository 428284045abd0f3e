"""Train a reward model on preference pairs (columns `chosen` and `rejected` of messages), with TRL's RewardTrainer.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_reward.py config.yaml

The result is a sequence classifier with one label (Bradley-Terry loss), which on_policy_data_gen's
reward_model_annotate.py scores with. The chat template is the tokenizer's own, as it is there.
"""

from simpo.console import UserError, command
from simpo.data.load import get_datasets
from simpo.train.finish import train_and_save
from simpo.train.launcher import parse_arguments
from simpo.train.model import choose_attention, choose_dtype, get_model_config, get_tokenizer
from simpo.train.run import start_run


@command
def main() -> None:
    from trl import RewardConfig, RewardTrainer

    model_args, data_args, args = parse_arguments(RewardConfig)
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise UserError("use_peft, load_in_4bit, load_in_8bit: reward models are trained whole; drop these keys")
    checkpoint = start_run(model_args, data_args, args, objective="reward")
    tokenizer = get_tokenizer(model_args, data_args)
    with args.main_process_first(desc="loading data"):
        splits = get_datasets(data_args)
    for split, dataset in splits.items():
        if missing := {"chosen", "rejected"} - set(dataset.column_names):
            raise UserError(f"{split} data: has no column {min(missing)} (found: {', '.join(dataset.column_names)})")
        splits[split] = dataset.select_columns(["chosen", "rejected"])
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": choose_attention(
            model_args.attn_implementation, get_model_config(model_args).model_type
        ),
        "dtype": choose_dtype(model_args, args),
    }
    trainer = RewardTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits.get("test"),
        processing_class=tokenizer,
    )
    card = {"dataset_name": ", ".join(data_args.dataset_mixer), "tags": ["reward-model"]}
    train_and_save(trainer, model_args, data_args, checkpoint, objective="reward", card=card)


if __name__ == "__main__":
    main()
