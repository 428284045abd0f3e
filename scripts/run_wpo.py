"""Train a model on preference pairs with WPO; with --use_wpo_weighting=false, with DPO.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3_8gpu.yaml \
        scripts/run_wpo.py training_configs/llama3_instruct.yaml --precompute_ref_log_probs=true

Settings come from the YAML, then from --key=value. A run that was stopped resumes from its newest whole checkpoint.
"""

from simpo.console import command
from simpo.train.launcher import parse_arguments
from simpo.train.model import get_peft_config, get_tokenizer, load_policy, load_reference
from simpo.train.run import load_pairs, show_summary, start_run, train_and_save
from wpo_config import WPOConfig
from wpo_trainer import WPOTrainer


@command
def main() -> None:
    model_args, data_args, args = parse_arguments(WPOConfig)
    checkpoint = start_run(model_args, data_args, args, objective="wpo")
    tokenizer = get_tokenizer(model_args, data_args)
    pairs = load_pairs(data_args, args, tokenizer)
    trainer = WPOTrainer(
        model=load_policy(model_args, args, checkpoint),
        ref_model=load_reference(model_args, args),
        args=args,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("test"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    show_summary(trainer)
    train_and_save(trainer, model_args, data_args, checkpoint, objective="wpo")


if __name__ == "__main__":
    main()
