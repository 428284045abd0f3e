"""Metrics of single batches, kept until the next log."""

from collections import defaultdict
from typing import Any, Literal

import torch
from transformers import Trainer


class StoredMetrics(Trainer):
    """Mixin."""

    def __init__(self, *args: Any, **kwargs: Any):
        # Per phase and metric, the values of the batches since the last log.
        self._stored_metrics: dict[str, defaultdict[str, list[torch.Tensor]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        super().__init__(*args, **kwargs)

    def store_metrics(self, metrics: dict[str, torch.Tensor], train_eval: Literal["train", "eval"]) -> None:
        for name, value in metrics.items():
            self._stored_metrics[train_eval][name].append(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding what became of the metrics stored since the last log: means (minima) over all processes."""
        stored = self._stored_metrics["train" if "loss" in logs else "eval"]
        if stored:
            gathered = self.accelerator.gather(torch.stack([torch.stack(values) for values in stored.values()], dim=1))
            for name, values in zip(stored, gathered.float().unbind(dim=1), strict=True):
                logs[name] = (values.min() if name.endswith("/min") else values.mean()).item()
            stored.clear()
        super().log(logs, start_time)
