"""Train a model on preference pairs with WPO; with --use_wpo_weighting=false, with DPO.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3_8gpu.yaml \
        scripts/run_wpo.py training_configs/llama3_instruct.yaml --precompute_ref_log_probs=true

Settings come from the YAML, then from --key=value. A run that was stopped resumes from its newest whole checkpoint.
"""

from simpo.console import command
from simpo.train.recipe import train_on_preferences
from wpo_config import WPOConfig
from wpo_trainer import WPOTrainer


@command
def main() -> None:
    train_on_preferences(WPOConfig, WPOTrainer)


if __name__ == "__main__":
    main()
