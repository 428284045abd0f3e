"""The trainer of all preference objectives.

It turns text pairs into batches, asks the policy (and the reference, where the objective compares with one) for the
responses' log-probabilities (how: `simpo.logps`), hands them to the objective (what: `simpo.objectives`) and keeps the
metrics. Which objective, its arguments say: their class declares it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import TrainerCallback

from simpo.console import UserError
from simpo.data.pairs import DataReport, tokenize_pairs
from simpo.data.tokenize import OwnCollator, PairTokenizer, PreferenceCollator
from simpo.logps.checked import CheckedLogps
from simpo.logps.fused import choose_path
from simpo.logps.plain import ResponseLogps, get_batch_logps
from simpo.objectives.base import PairOutputs, PreferenceLoss
from simpo.objectives.wpo import wpo_response_weights, wpo_weights
from simpo.train.config import PreferenceConfig
from simpo.train.fsdp2 import return_as_computed
from simpo.train.generations import write_generations
from simpo.train.mismatched import ReferencePoint
from simpo.train.model_card import append_objective
from simpo.train.original_names import OriginalNames
from simpo.train.policy import prepare_policy
from simpo.train.reference import Reference
from simpo.train.same_data import check_same_rows
from simpo.train.token_batches import TokenBatches, check_longest
from simpo.train.weights import check_vocabulary, load_named_model
from simpo.train.whole_steps import WholeSteps


class PreferenceTrainer(OriginalNames, TokenBatches, WholeSteps):
    """transformers' Trainer for datasets of string columns prompt, chosen, rejected.

    Args:
        model: the policy, or its name (loaded with `args.model_init_kwargs`; in float32 unless they say otherwise).
        args: of a class that `config_class` made for the objective (SimPOConfig, WPOConfig, ...).
        data_collator: your own, given rows of token ids; see `OwnCollator` for what it may return.
        train_dataset, eval_dataset: text pairs; they are tokenized here, and pairs that cannot be trained on dropped.
        tokenizer: also accepted as `processing_class`.
        peft_config: wrap the policy in new adapters.
        ref_model: the reference model, or a function that loads it if it is needed (see `Reference`). Objectives that
            compare with one need it, unless the policy has adapters.

    Raises:
        UserError: no pair is left to train on; rows that are not text; a model or tokenizer that cannot be used; the
            objective needs a reference model and there is none.
    """

    args: PreferenceConfig
    loss_is_scaled_for_ga = False  # every micro-batch's loss is the mean over its own pairs
    get_batch_logps = staticmethod(get_batch_logps)

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        args: PreferenceConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        preprocess_logits_for_metrics: Callable | None = None,
        peft_config: Any | None = None,
        compute_metrics: Callable | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: PreTrainedModel | Callable[[], PreTrainedModel] | None = None,
    ):
        tokenizer = processing_class or tokenizer
        if tokenizer is None or args is None:
            raise ValueError(f"{type(self).__name__} needs args and a tokenizer (processing_class)")
        if args.declaration is None:
            raise ValueError(f"{type(args).__name__} has no objective: see config_class")
        self.objective = args.declaration
        if isinstance(model, str):
            model = load_named_model(model, args.model_init_kwargs)
        elif args.model_init_kwargs is not None:
            raise UserError("model_init_kwargs: only for a model given by name; this one is loaded already")
        if model is not None:
            check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
            model = prepare_policy(model, args, peft_config)
        if self.objective.reference and ref_model is None and not hasattr(model, "disable_adapter"):
            raise UserError(
                f"{self.objective.name} compares with a reference model: pass ref_model, or a policy with adapters"
            )

        self.pair_tokenizer = PairTokenizer(
            tokenizer, args.max_length, args.max_prompt_length, args.truncation_mode, args.label_pad_token_id
        )
        self.data_reports: dict[str, DataReport] = {}
        with args.main_process_first(desc="tokenizing"):
            train_dataset = self._tokenize(train_dataset, "train", args)
            if isinstance(eval_dataset, dict):
                eval_dataset = {name: self._tokenize(dataset, name, args) for name, dataset in eval_dataset.items()}
            else:
                eval_dataset = self._tokenize(eval_dataset, "test", args)
        check_same_rows(train_dataset, args.world_size)
        if train_dataset is not None and args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            sides = (train_dataset["chosen_input_ids"], train_dataset["rejected_input_ids"])
            lengths = [max(len(chosen), len(rejected)) for chosen, rejected in zip(*sides, strict=True)]
            train_dataset = train_dataset.add_column(args.length_column_name, lengths)
        pad = args.padding_value if args.padding_value is not None else tokenizer.pad_token_id
        self.stack_pairs = PreferenceCollator(0 if pad is None else pad, args.label_pad_token_id)
        data_collator = self.stack_pairs if data_collator is None else OwnCollator(data_collator, self.stack_pairs)

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.model.config.pad_token_id = self.model.generation_config.pad_token_id = tokenizer.pad_token_id
        self.model_accepts_loss_kwargs = False  # no token counts over micro-batches: see loss_is_scaled_for_ga
        return_as_computed(self.accelerator)
        self.log_probs = CheckedLogps(args, self.accelerator)
        if args.max_tokens_per_micro_batch is not None and self.train_dataset is not None:
            if getattr(self.model.config, "output_router_logits", False):
                raise UserError(
                    "max_tokens_per_micro_batch: not with output_router_logits: the router's loss depends on which "
                    "pairs make up a batch; leave it out"
                )
            check_longest(self.train_dataset, args.max_tokens_per_micro_batch, choose_path(self.model, args))
        self._prepare_references(ref_model)

    def _prepare_references(self, ref_model: PreTrainedModel | Callable[[], PreTrainedModel] | None) -> None:
        self.reference = None
        if self.objective.reference:
            per_token = self.objective.logps == "mean"
            self.reference = Reference(self, ref_model, self.response_logps, per_token)
        self.reference_point = None
        if self.objective.mismatched:
            self.reference_point = ReferencePoint(
                self, self.reference, self.response_logps, self.pair_tokenizer, self.stack_pairs
            )

    def _tokenize(self, dataset: Dataset | None, name: str, args: PreferenceConfig) -> Dataset | None:
        if dataset is None:
            return None
        tokens, self.data_reports[name] = tokenize_pairs(dataset, self.pair_tokenizer, name, args.dataset_num_proc)
        return tokens

    def tokenize_row(self, feature: dict[str, str], model: Any = None) -> dict[str, list[int]]:
        """Token ids and labels of one row {prompt, chosen, rejected}; see `PairTokenizer`."""
        columns = self.pair_tokenizer({name: [feature[name]] for name in ("prompt", "chosen", "rejected")})
        return {name: values[0] for name, values in columns.items()}

    # ---- the objective -------------------------------------------------------------------------------------------

    @property
    def tags(self) -> list[str]:
        return self.objective.tags

    def pair_loss(self, pairs: PairOutputs) -> PreferenceLoss:
        """The objective: losses and rewards of a batch's pairs, before any weighting."""
        return self.objective.loss(pairs, **self.objective.values(self.args))

    def objective_settings(self) -> dict[str, Any]:
        """The settings that define the objective, for the summary and the model card."""
        shared = {name: getattr(self.args, name) for name in ("sft_weight", "use_wpo_weighting")}
        return self.objective.values(self.args) | shared

    # ---- forward, loss, metrics ----------------------------------------------------------------------------------

    def response_logps(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], with_weights: bool = False
    ) -> ResponseLogps:
        """Log-probabilities of 2B responses, the chosen ones first, from one forward pass."""
        # (B, 2, T) to (2B, T): [chosen; rejected]
        rows = {name: batch[name].transpose(0, 1).flatten(0, 1) for name in ("input_ids", "attention_mask", "labels")}
        return self.log_probs(model, rows, with_weights)

    def concatenated_forward(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> PairOutputs:
        """Run the policy once over chosen and rejected together (and the reference, where the objective needs it).

        Args:
            batch: what the collator returns.
        """
        reference_point = self.reference_point(model, batch) if self.reference_point else None
        reference = self.reference.logps(model, batch) if self.reference else None
        responses = self.response_logps(model, batch, with_weights=self.args.use_wpo_weighting)
        logps = responses.means if self.objective.logps == "mean" else responses.sums
        n = len(logps) // 2
        nll_length = batch.get("nll_length", responses.lengths[:n].float().mean())  # see `TokenBatches`
        weights = responses.log_weights
        weigh = wpo_response_weights if self.objective.unpaired else wpo_weights
        return PairOutputs(
            chosen_logps=logps[:n],
            rejected_logps=logps[n:],
            chosen_lengths=responses.lengths[:n],
            rejected_lengths=responses.lengths[n:],
            ref_chosen_logps=None if reference is None else reference[:n],
            ref_rejected_logps=None if reference is None else reference[n:],
            reference_point=reference_point,
            chosen_nll=-(responses.sums[:n] / nll_length).mean(),
            chosen_mean_logits=responses.mean_logits[:n],
            rejected_mean_logits=responses.mean_logits[n:],
            weights=None if weights is None else weigh(weights[:n], weights[n:]),
            router_loss=responses.router_loss,
        )

    def get_batch_loss_metrics(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], train_eval: Literal["train", "eval"] = "train"
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch (scalar) and its metrics (scalars on the device; names prefixed in evaluation)."""
        pairs = self.concatenated_forward(model, batch)
        return self._loss_and_metrics(pairs, self.pair_loss(pairs), train_eval)

    def _loss_and_metrics(
        self, pairs: PairOutputs, result: PreferenceLoss, train_eval: Literal["train", "eval"]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        metrics = {}
        if self.objective.metrics:
            found = self.objective.metrics(pairs, **self.objective.values(self.args))
            metrics |= {name: value.detach().mean() for name, value in found.items()}
        losses = result.losses
        if pairs.weights is not None:
            losses = losses * pairs.weights
            metrics |= {"weights/mean": pairs.weights.mean(), "weights/min": pairs.weights.min()}
        loss = losses.mean()
        if self.args.sft_weight > 0:
            loss = loss + self.args.sft_weight * pairs.chosen_nll
            metrics["sft_loss"] = pairs.chosen_nll.detach()
        if pairs.router_loss is not None:
            loss = loss + self.model.config.router_aux_loss_coef * pairs.router_loss
            metrics["aux_loss"] = pairs.router_loss.detach()
        metrics |= {
            "rewards/chosen": result.chosen_rewards.mean(),
            "rewards/rejected": result.rejected_rewards.mean(),
            "rewards/accuracies": (result.chosen_rewards > result.rejected_rewards).float().mean(),
            "rewards/margins": (result.chosen_rewards - result.rejected_rewards).mean(),
            "logps/rejected": pairs.rejected_logps.detach().mean(),
            "logps/chosen": pairs.chosen_logps.detach().mean(),
            "logits/rejected": pairs.rejected_mean_logits.mean(),
            "logits/chosen": pairs.chosen_mean_logits.mean(),
        }
        prefix = "eval_" if train_eval == "eval" else ""
        return loss, {prefix + name: value for name, value in metrics.items()}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = self.get_batch_loss_metrics(model, inputs, "train")
        self.store_metrics(metrics, "train")
        return (loss, metrics) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Evaluate a batch. What `compute_metrics` sees: rewards (B, 2), chosen first, and labels (B,) of zeros."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            pairs = self.concatenated_forward(model, inputs)
            result = self.pair_loss(pairs)
            loss, metrics = self._loss_and_metrics(pairs, result, "eval")
        self.store_metrics(metrics, "eval")
        if prediction_loss_only:
            return loss, None, None
        rewards = torch.stack([result.chosen_rewards, result.rejected_rewards], dim=1)
        return loss, rewards, torch.zeros_like(rewards[:, 0])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        if self.args.generate_during_eval:
            write_generations(self)
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """transformers' model card, followed by what the objective was."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            lengths = {name: getattr(self.args, name) for name in ("max_length", "max_prompt_length")}
            append_objective(Path(self.args.output_dir), self.objective.paper, self.objective_settings() | lengths)

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any) -> str:
        kwargs["tags"] = list(dict.fromkeys([*kwargs.get("tags", []), *self.tags]))
        return super().push_to_hub(commit_message, blocking, **kwargs)
