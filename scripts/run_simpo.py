"""Train a model on preference pairs with SimPO.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_simpo.py \
        training_configs/llama-3-8b-instruct-simpo.yaml --output_dir=outputs/mine

Settings come from the YAML, then from --key=value. A run that was stopped resumes from its newest whole checkpoint.
"""

from simpo.console import command
from simpo.train.recipe import train_on_preferences
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer


@command
def main() -> None:
    train_on_preferences(SimPOConfig, SimPOTrainer)


if __name__ == "__main__":
    main()
