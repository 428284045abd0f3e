"""Train a model on preference pairs with SimPO.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_simpo.py \
        training_configs/llama-3-8b-instruct-simpo.yaml --output_dir=outputs/mine

Settings come from the YAML, then from --key=value. A run that was stopped resumes from its newest whole checkpoint.
"""

from simpo.console import command
from simpo.train.launcher import parse_arguments
from simpo.train.model import get_peft_config, get_tokenizer, load_policy
from simpo.train.run import load_pairs, show_summary, start_run, train_and_save
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer


@command
def main() -> None:
    model_args, data_args, args = parse_arguments(SimPOConfig)
    checkpoint = start_run(model_args, data_args, args, objective="simpo")
    tokenizer = get_tokenizer(model_args, data_args, mistral_override=True)
    pairs = load_pairs(data_args, args, tokenizer)
    trainer = SimPOTrainer(
        model=load_policy(model_args, args, checkpoint),
        args=args,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("test"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    show_summary(trainer)
    train_and_save(trainer, model_args, data_args, checkpoint, objective="simpo")


if __name__ == "__main__":
    main()
