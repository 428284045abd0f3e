"""The recipe of run_simpo.py, run_wpo.py and run_preference.py: parse, load, format, train, save."""

import sys

from simpo.config.reading import read_yaml, split_overrides
from simpo.console import Done, UserError
from simpo.objectives import objective_names
from simpo.train.config import PreferenceConfig, config_class
from simpo.train.dry_run import policy_on_paper, report_needs, trainer_on_paper
from simpo.train.finish import train_and_save
from simpo.train.launcher import parse_arguments
from simpo.train.model import get_peft_config, get_tokenizer, load_policy, load_reference
from simpo.train.rerun import settings_of
from simpo.train.run import load_pairs, show_summary, start_run
from simpo.train.trainer import PreferenceTrainer


def train_on_preferences(
    config: type[PreferenceConfig], trainer_class: type[PreferenceTrainer] = PreferenceTrainer
) -> None:
    """Train with an objective on the preference data that the command line names.

    Args:
        config: the objective's settings, of `config_class`.

    Raises:
        UserError: the command line or what it names cannot be trained on.
    """
    model_args, data_args, args = parse_arguments(config)
    objective = config.declaration
    checkpoint = start_run(model_args, data_args, args, objective=objective.name)
    tokenizer = get_tokenizer(model_args, data_args, mistral_override=objective.mistral_template)
    pairs = load_pairs(data_args, args, tokenizer)
    if args.dry_run:
        trainer_class = trainer_on_paper(trainer_class)
    trainer = trainer_class(
        model=policy_on_paper(model_args, args) if args.dry_run else load_policy(model_args, args, checkpoint),
        ref_model=load_reference(model_args, args) if objective.reference else None,
        args=args,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("test"),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    show_summary(trainer, settings_of(model_args, data_args, args))
    if args.dry_run:
        report_needs(trainer, model_args)
        raise Done("dry run: nothing was trained or written")
    train_and_save(trainer, model_args, data_args, checkpoint, objective=objective.name)


def chosen_config() -> type[PreferenceConfig]:
    """The settings' class of the objective that the command line names, in its YAML or as --objective.

    Raises:
        UserError: it names none, or one that does not exist.
    """
    asked = {"-h", "--help"} & set(sys.argv)
    argv = [word for word in sys.argv[1:] if word not in asked]
    values = read_yaml(argv.pop(0)) if argv and not argv[0].startswith("--") else {}
    values |= split_overrides(argv)
    if asked and "objective" not in values:
        return PreferenceConfig  # whose help lists the objectives
    if "objective" not in values:
        raise UserError(f"objective: not given; one of {', '.join(objective_names())}")
    return config_class(str(values["objective"]))
