"""The reference model's log-probabilities: from a frozen copy, from the policy under its adapters, or precomputed."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import xxhash
from accelerate import DistributedType
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import Hasher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer

from simpo.console import UserError, is_main_process, progress, warn
from simpo.files import put_in_place, writing
from simpo.logps.plain import ResponseLogps
from simpo.train.fsdp2 import shard_frozen
from simpo.train.model import check_same_vocabulary

CHUNK = 2048  # rows between two saves of precomputed values


class Reference:
    """Log-probabilities under the start model, which training never changes.

    - `ref_model` given: a frozen second copy (under ZeRO-3 and FSDP sharded like the policy).
    - Not given, and the policy has adapters: the policy with its adapters off.
    - `precompute_ref_log_probs`: computed once before training and kept in the datasets cache, keyed by the model's
      files and the tokenized data, so that training holds one model only. Stale values have another key.

    Args:
        trainer: its args are a `ReferenceConfig`; its datasets get a column ref_logps, [chosen, rejected], when
            precomputed.
        ref_model: the copy, or a function that loads it (not called when everything is precomputed already). None
            where the policy has adapters.
        response_logps: from a model and a batch to the log-probabilities of its 2B responses.
        per_token: divide them by the responses' lengths.

    Raises:
        UserError: the copy's vocabulary is not the policy's.
    """

    def __init__(
        self,
        trainer: Trainer,
        ref_model: PreTrainedModel | Callable[[], PreTrainedModel] | None,
        response_logps: Callable[[torch.nn.Module, dict[str, torch.Tensor]], ResponseLogps],
        per_token: bool,
    ):
        self.trainer = trainer
        self.source = ref_model
        self.response_logps = response_logps
        self.per_token = per_token
        self.model: torch.nn.Module | None = None
        if not trainer.args.precompute_ref_log_probs:
            if ref_model is not None:
                self._load()
            return
        if trainer.train_dataset is not None:
            trainer.train_dataset = self._precomputed(trainer.train_dataset, "train")
        if isinstance(trainer.eval_dataset, dict):
            trainer.eval_dataset = {name: self._precomputed(d, name) for name, d in trainer.eval_dataset.items()}
        elif trainer.eval_dataset is not None:
            trainer.eval_dataset = self._precomputed(trainer.eval_dataset, "test")
        self.model = None  # training holds the policy only
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def logps(self, policy: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(2B,) float32 without gradient, the chosen responses first; as `response_logps`, per token or summed."""
        if "ref_logps" in batch:
            return batch["ref_logps"].T.flatten()
        with torch.no_grad():
            if self.model is not None:
                responses = self.response_logps(self.model, batch)
            else:
                with without_adapters(self.trainer.accelerator.unwrap_model(policy)):
                    responses = self.response_logps(policy, batch)
        return responses.means if self.per_token else responses.sums

    def _load(self) -> None:
        model = self.source if isinstance(self.source, PreTrainedModel) else self.source()
        check_same_vocabulary(self.trainer.model.config, model.config)
        model.requires_grad_(False)
        accelerator = self.trainer.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            from trl.models.utils import prepare_deepspeed

            self.model = prepare_deepspeed(model, accelerator)
        elif accelerator.is_fsdp2:
            self.model = shard_frozen(model, accelerator)
        elif accelerator.distributed_type == DistributedType.FSDP:
            from trl.models.utils import prepare_fsdp

            self.model = prepare_fsdp(model, accelerator)
        else:
            self.model = accelerator.prepare_model(model, evaluation_mode=True)
        self.model.eval()

    def _precomputed(self, dataset: Dataset, name: str) -> Dataset:
        """The dataset with its column ref_logps; chunks that were computed before are read, not computed."""
        key = Hasher.hash(("with digests", dataset._fingerprint, self._model_key(), self.per_token))
        folder = Path(HF_DATASETS_CACHE) / "ref_logps" / key
        values = []
        starts = range(0, len(dataset), CHUNK)
        desc, silent = f"reference log-probabilities, {name}", not is_main_process()
        for start in progress(len(starts), desc, "chunk", iterable=starts, disable=silent):
            chunk = dataset.select(range(start, min(start + CHUNK, len(dataset))))
            file = folder / f"{start}.safetensors"
            known = [read_chunk(file, len(chunk)) if is_main_process() else None]
            broadcast_object_list(known)  # one answer for all processes
            values.append(self._compute(chunk) if known[0] is None else known[0])
            if known[0] is None and is_main_process():
                write_chunk(file, values[-1])
        return dataset.add_column("ref_logps", torch.cat(values).tolist())

    def _compute(self, dataset: Dataset) -> torch.Tensor:
        """(len(dataset), 2) float32 on the CPU, in order, on every process."""
        trainer = self.trainer
        if self.model is None:
            self._load_for_precomputing()
        loader = trainer.accelerator.prepare(
            DataLoader(dataset, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator)
        )
        values = []
        for batch in loader:
            with trainer.compute_loss_context_manager():
                logps = self.logps(trainer.model, trainer._prepare_inputs(batch))
            values.append(trainer.accelerator.gather_for_metrics(logps.view(2, -1).T.contiguous()).cpu())
        return torch.cat(values)

    def _load_for_precomputing(self) -> None:
        if self.source is not None:
            self._load()
        elif self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled:
            raise UserError("precompute_ref_log_probs: with adapters and sharded weights, pass ref_model as well")
        else:
            self.trainer.model.eval()

    def _model_key(self) -> tuple:
        """What tells this reference model from others: its name and the state of its files."""
        name = self.trainer.args.ref_model_name_or_path or self.trainer.model.config._name_or_path
        folder = Path(name)
        if not name or not folder.is_dir():
            return (name, getattr(self.trainer.model.config, "_commit_hash", None))
        files = sorted(p for pattern in ("*.safetensors", "*.bin", "*.json") for p in folder.glob(pattern))
        return (str(folder.resolve()), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])


@contextmanager
def without_adapters(model: torch.nn.Module) -> Iterator[None]:
    """The model with its adapters off, but trainable as before: FSDP2 looks at what is when it first sees a batch."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with model.disable_adapter():
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def write_chunk(file: Path, values: torch.Tensor) -> None:
    """Keep precomputed values with their digest."""
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")  # several runs may share the cache
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"ref_logps": values}, beside, metadata={"digest": digest_of(values)})
        put_in_place(beside, file)


def read_chunk(file: Path, rows: int) -> torch.Tensor | None:
    """Values that `write_chunk` kept, (rows, 2) float32; None when there are none, or not the same any more."""
    if not file.exists():
        return None
    with suppress(OSError, SafetensorError, KeyError, TypeError), safe_open(file, "pt") as kept:
        values = kept.get_tensor("ref_logps")
        if values.shape == (rows, 2) and kept.metadata()["digest"] == digest_of(values):
            return values
    warn(f"{file} is torn: its reference log-probabilities are computed again")
    return None


def digest_of(values: torch.Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(values.numpy().tobytes())
