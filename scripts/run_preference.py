"""Train a model on preference pairs with the objective that the settings name.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml scripts/run_preference.py \
        training_configs/ipo/llama-3-8b-instruct-ipo.yaml --output_dir=outputs/mine

docs/objectives.md lists the objectives and their settings. Settings come from the YAML, then from --key=value (also
--objective=NAME). A run that was stopped resumes from its newest whole checkpoint.
"""

from simpo.console import command
from simpo.train.recipe import chosen_config, train_on_preferences


@command
def main() -> None:
    train_on_preferences(chosen_config())


if __name__ == "__main__":
    main()
