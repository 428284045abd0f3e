"""Train a reward model on preference pairs (columns `chosen` and `rejected` of messages), with TRL's RewardTrainer.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_reward.py config.yaml

The result is a sequence classifier with one label (Bradley-Terry loss), which on_policy_data_gen's
reward_model_annotate.py scores with, on the same inputs: those of the tokenizer's chat template, or for encoders (BERT,
DeBERTa) without one the prompt and the response as a pair of texts.
"""

import sys

from simpo.console import UserError, command
from simpo.data.comparisons import ComparisonCollator, tokenize_comparisons
from simpo.train.finish import train_and_save
from simpo.train.launcher import parse_arguments
from simpo.train.model import choose_dtype, get_tokenizer
from simpo.train.run import load_splits, start_run
from simpo.train.weights import choose_attention, get_model_config, position_limit


@command
def main() -> None:
    from trl import RewardConfig, RewardTrainer

    model_args, data_args, args = parse_arguments(RewardConfig)
    if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
        raise UserError("use_peft, load_in_4bit, load_in_8bit: reward models are trained whole; drop these keys")
    checkpoint = start_run(model_args, data_args, args, objective="reward")
    tokenizer = get_tokenizer(model_args, data_args, auto_set_chat_template=False)
    reads_pairs = (
        tokenizer.chat_template is None and data_args.chat_template is None and tokenizer.sep_token is not None
    )
    if not reads_pairs:
        tokenizer = get_tokenizer(model_args, data_args)
    config = get_model_config(model_args)
    longest = min(args.max_length or sys.maxsize, position_limit(config) or sys.maxsize)
    with args.main_process_first(desc="preparing data"):
        splits = {
            name: tokenize_comparisons(rows, tokenizer, name, longest, data_args.preprocessing_num_workers)
            for name, rows in load_splits(data_args, args, "chosen").items()
        }
    args.remove_unused_columns = False  # the collator's own
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": model_args.trust_remote_code,
        "use_safetensors": True,
        "attn_implementation": choose_attention(model_args.attn_implementation, config.model_type),
        "dtype": choose_dtype(model_args, args),
    }
    trainer = RewardTrainer(
        model=model_args.model_name_or_path,
        args=args,
        data_collator=ComparisonCollator(tokenizer),
        train_dataset=splits["train"],
        eval_dataset=splits.get("test"),
        processing_class=tokenizer,
    )
    card = {"dataset_name": ", ".join(data_args.dataset_mixer), "tags": ["reward-model"]}
    train_and_save(trainer, model_args, data_args, checkpoint, objective="reward", card=card)


if __name__ == "__main__":
    main()
