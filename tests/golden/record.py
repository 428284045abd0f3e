"""Records a run of the original: `python record.py ORIGINALS NAME`, in a folder with configs/, the data and models/.

ORIGINALS holds clones of the originals, SimPO and WPO. Their scripts run as they are; what is recorded is taken from
outside, by wrapping their trainers' methods. Needs the old libraries (see README.md).
"""

import hashlib
import json
import os
import sys
from pathlib import Path

originals, name = Path(sys.argv[1]), sys.argv[2]
wpo = name.startswith("wpo")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(Path("cache").resolve()), "CUDA_VISIBLE_DEVICES": ""}
sys.path[:0] = [str(originals / ("WPO" if wpo else "SimPO") / "scripts"), str(originals / "SimPO")]

import alignment.model_utils  # noqa: E402
import torch  # noqa: E402
from huggingface_hub.utils import HFValidationError  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

import alignment  # noqa: E402  (SimPO's copy of the handbook's package; run_wpo.py uses it too)

torch.set_num_threads(1)
COLUMNS = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
if wpo:  # written for an older handbook: it asks the hub about the model, and cannot choose the attention

    def no_hub(*args, **kwargs):
        raise HFValidationError("a folder")

    alignment.model_utils.list_repo_files = no_hub
    alignment.ModelArguments.use_flash_attention_2 = False
    load = AutoModelForCausalLM.from_pretrained.__func__

    def load_eager(cls, *args, use_flash_attention_2=False, **kwargs):
        return load(cls, *args, **(kwargs | {"attn_implementation": "eager"}))

    AutoModelForCausalLM.from_pretrained = classmethod(load_eager)
    import run_wpo as script

    Trainer = script.WPOTrainer
else:
    import run_simpo as script

    Trainer = script.SimPOTrainer

record = {"name": name, "rows": {}, "text": {}, "init": {}, "steps": []}
positions, kept = {}, {}
compute_loss, train = Trainer.compute_loss, Trainer.train
if wpo:
    dpo_loss = Trainer.dpo_loss

    def recording_dpo_loss(self, *args):
        kept["weights"] = args[-1].tolist()
        return dpo_loss(self, *args)

    Trainer.dpo_loss = recording_dpo_loss


def sha(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def recording_compute_loss(self, model, inputs, return_outputs=False):
    outputs = compute_loss(self, model, inputs, return_outputs)
    loss = outputs[0] if return_outputs else outputs
    rows = [positions[texts] for texts in zip(inputs["prompt"], inputs["chosen"], inputs["rejected"], strict=True)]
    record["steps"].append({"rows": rows, "loss": loss.item()} | ({"weights": kept["weights"]} if wpo else {}))
    return outputs


def recording_train(self, *args, **kwargs):
    kept["trainer"] = self
    assert self.model.config._attn_implementation == "eager" and self.model.dtype == torch.float32
    for split, dataset in (("train", self.train_dataset), ("test", self.eval_dataset)):
        rows = [dataset[i] for i in range(len(dataset))]
        record["rows"][split] = {
            "sha": [sha([row[c] for c in COLUMNS]) for row in rows],
            "prompt_sha": [sha(row["prompt"]) for row in rows],
            "lens": [[len(row[f"{n}_input_ids"]) for n in ("prompt", "chosen", "rejected")] for row in rows],
            "first": [{c: row[c] for c in COLUMNS} for row in rows[:2]],
        }
        record["text"][split] = [{c: row[c] for c in ("prompt", "chosen", "rejected")} for row in rows[:2]]
        record["init"][split] = []
        for row in rows:
            with torch.no_grad():
                outputs = self.concatenated_forward(self.model, self.data_collator([row]))
            record["init"][split].append([outputs[i].item() for i in ((0, 1, 4) if wpo else (0, 1))])
        if split == "train":
            positions.update({(r["prompt"], r["chosen"], r["rejected"]): i for i, r in enumerate(rows)})
            assert len(positions) == len(rows)
    result = train(self, *args, **kwargs)
    trained = {n: p.detach().double() for n, p in self.model.named_parameters() if p.requires_grad}
    record["weights"] = {name.replace(".default", ""): weight.norm().item() for name, weight in trained.items()}
    record["final_norm"] = sum(norm**2 for norm in record["weights"].values()) ** 0.5
    return result


def short(value):
    """The same with floats of 7 significant digits."""
    if isinstance(value, dict):
        return {k: short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [short(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def lines(value, depth: int = 3) -> str:
    """JSON with the outer levels on lines of their own."""
    if depth and isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {lines(v, depth - 1)}" for k, v in value.items()) + "\n}"
    if depth and isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(lines(v, 0) for v in value) + "\n]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


Trainer.compute_loss, Trainer.train = recording_compute_loss, recording_train
sys.argv = [script.__file__, f"configs/{name}.yaml"]
script.main()
record["trainer_log"] = [
    {k: v for k, v in entry.items() if not k.endswith(("runtime", "_per_second"))}
    for entry in kept["trainer"].state.log_history
    if "train_loss" not in entry
]
Path("records").mkdir(exist_ok=True)
Path(f"records/{name}.json").write_text(lines(short(record)) + "\n", encoding="utf-8")
