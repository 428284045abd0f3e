"""The command blocks of the pages, and a checkout in which they run as they stand.

    checkout = Checkout(folder, warm)
    checkout.run(block("README.md", "run_sft.py"))

The names of models and data sets are folders of the checkout, which is where a name is looked for first. What makes a
command small enough for this machine is OPTIONS, put behind it: of an option that stands twice the last one counts.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from conftest import ROOT, make_pairs, write_jsonl

from tiny_models import tiny_model, tiny_tokenizer
from tiny_reward_models import tiny_armorm

PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("outputs", "golden") for part in page.relative_to(ROOT).parts)
)

# Every block of commands is in one of these two, by its page and words that stand in no other block of it.
RUN = {  # by which test
    ("README.md", "conda env create"): "test_pages.py",
    ("README.md", "run_sft.py"): "test_pages.py",
    ("README.md", "run_wpo.py"): "test_pages.py",
    ("README.md", "run_preference.py"): "test_pages.py",
    ("README.md", "gemma-2-9b-it-simpo.yaml"): "test_pages.py",
    ("README.md", "run_pipeline.sh"): "test_pipeline.py",
    ("docs/objectives.md", "run_preference.py"): "test_pages.py",
    ("docs/reproduce.md", "run_simpo.py"): "test_eval_pipeline.py",
    ("docs/scale.md", "sbatch"): "test_parts.py",
    ("eval/README.md", "check_prompts.py"): "test_pages.py",
    ("eval/README.md", "generate_answers.py"): "test_eval_pipeline.py",
    ("on_policy_data_gen/README.md", "run_pipeline.sh"): "test_pipeline.py",
    ("on_policy_data_gen/README.md", "gpt-4-turbo"): "test_pipeline.py",
    ("on_policy_data_gen/README.md", "BASE_URL="): "test_pipeline.py",
    ("on_policy_data_gen/README.md", "cd on_policy_data_gen"): "test_pipeline.py",
}
PARSED_ONLY = {  # what it would take, and which test has something in its place
    ("README.md", "make quickstart"): "an environment; test_quickstart.py runs what the first one does, on little data",
    ("CONTRIBUTING.md", "make env"): "the network, the tests themselves, and measurements of many minutes",
    ("CONTRIBUTING.md", "make lock"): "the network",
    ("docs/multinode.md", "10.0.0.1"): "two machines; test_nodes.py has two processes in their place",
    ("docs/multinode.md", "SBATCH"): "a cluster",
    ("docs/multinode.md", "netns"): "network namespaces",
    ("docs/scale.md", "ray start"): "several machines; test_cluster.py has processes in their place",
    ("docs/scale.md", "run_rounds.sh"): "eight starts of an engine; test_rounds.py runs two rounds",
    ("examples/instructions/README.md", "compare.sh"): "a download of 93 MB, and an hour",
    ("examples/quickstart/README.md", "ROUNDS=3"): "25 minutes; test_quickstart.py runs it on little data",
    ("examples/quickstart/README.md", "compare.sh"): "a quickstart before it, and seventeen trainings and engines",
    ("on_policy_data_gen/README.md", "vllm serve"): "four GPUs",
    ("on_policy_data_gen/README.md", "FLASHINFER"): "FlashInfer, which needs a GPU",
}
PYTHON = {  # whose blocks of Python are run, and by which test
    "docs/extending.md": "test_extending.py",
    "docs/model_families.md": "test_fast_logps.py",
    "docs/objectives.md": "test_run_preference.py",
    "docs/python.md": "test_python_api.py",
}

STANDINS = ("conda", "lm-eval", "sbatch")  # do nothing
TRAINING = "--use_cpu=true --bf16=false --max_steps=2 --gradient_accumulation_steps=1 --preprocessing_num_workers=1"
TRAINING += " --logging_steps=1 --report_to=none"
OPTIONS = {  # a pattern of the shell's for the command -> more options
    "*/run_*.py *": TRAINING,
    "*decode.py *": "--max_tokens 24 --max_model_len 256 --dtype float32 --data_parallel_size 1",
    "*reward_model_annotate.py *": "--torch_dtype float32",
    "*generate_answers.py *": "--max_tokens 24 --max_model_len 512 --dtype float32",
    "*judge.py *": "--concurrency 2 --timeout 3",
}
PROGRAM = """#!/bin/bash
[ "${{0##*/}}" = python ] || while [[ $1 != *.py ]]; do shift; done  # one process, whatever the launcher would start
. "${{0%/*}}/options"
if [ -n "${{RECORD:-}}" ]; then
    printf '%s\\037' "$@" >> "$RECORD" && printf '\\036' >> "$RECORD"
else
    exec {python} "$@"
fi
"""


def blocks(page: str, language: str = "bash") -> list[str]:
    """A page's blocks of commands, or of another language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


def block(page: str, words: str) -> str:
    """The one block of a page that has these words."""
    (found,) = [text for text in blocks(page) if words in text]
    return found


class Checkout:
    """A folder like the repository's, with tiny models and data sets under the names that the pages give them."""

    def __init__(self, folder: Path, warm: Mapping[str, str]):
        self.folder, self.programs = folder / "check out", folder / "programs"
        self.programs.mkdir()
        self.python = warm["PATH"].split(":")[0] + "/python"
        texts = dict.fromkeys(("python", "accelerate"), PROGRAM.format(python=self.python))
        for name, text in (texts | dict.fromkeys(STANDINS, "#!/bin/sh\n")).items():
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        self.add_options(OPTIONS)
        self.environment = {**warm, "PATH": f"{self.programs}:{warm['PATH']}", "OMP_NUM_THREADS": "1"}
        for entry in ("accelerate_configs", "eval", "scripts", "training_configs", "generate.py", "environment.yml"):
            self.link(entry)
        for entry in (ROOT / "on_policy_data_gen").iterdir():  # in which a page works
            self.link(str(entry.relative_to(ROOT)))
        self.make_models()
        self.make_data()

    def add_options(self, options: Mapping[str, str]) -> None:
        with (self.programs / "options").open("a") as file:
            for pattern, words in options.items():
                file.write(f'[[ "$*" != {pattern.replace(" ", "?")} ]] || set -- "$@" {words}\n')

    def link(self, entry: str) -> None:
        (self.folder / entry).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / entry).symlink_to(ROOT / entry)

    def make_models(self) -> None:
        # as those on the hub: the official tokenizer adds BOS by itself, that of the released models does not
        official, released = tiny_tokenizer(adds_bos=True), tiny_tokenizer()
        tiny_model(self.folder / "meta-llama/Meta-Llama-3-8B-Instruct", tokenizer=official)
        tiny_model(self.folder / "meta-llama/Meta-Llama-3-8B", tokenizer=tiny_tokenizer(template=None))
        tiny_model(self.folder / "princeton-nlp/Llama-3-Instruct-8B-SimPO", tokenizer=released)
        tiny_model(self.folder / "google/gemma-2-9b-it", "gemma2", tokenizer=official)
        tiny_armorm(self.folder / "RLHFlow/ArmoRM-Llama3-8B-v0.1")

    def make_data(self) -> None:
        for name, ending in {
            "princeton-nlp/llama3-ultrafeedback": "",
            "princeton-nlp/gemma2-ultrafeedback-armorm": "",
            "HuggingFaceH4/ultrafeedback_binarized": "_prefs",
            "HuggingFaceH4/ultrachat_200k": "_sft",
        }.items():
            for split, rows in (("train", make_pairs(8)), ("test", make_pairs(3, offset=100))):
                rows = [row | {"messages": row["chosen"]} for row in rows]
                write_jsonl(self.folder / name / f"{split}{ending}.jsonl", rows)
        for owner in ("HuggingFaceH4", "RLHFlow", "google", "meta-llama"):
            (self.folder / "on_policy_data_gen" / owner).symlink_to(self.folder / owner)

    def start(self, command: list[str], **environment: str) -> subprocess.Popen:
        """Start a program in the checkout, with its output and errors in pipes."""
        env = os.environ | self.environment | environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=env, **pipes)

    def run(self, command: str | list[str], **environment: str) -> tuple[str, str]:
        """Run a text of commands, each of which must end with status 0, or a program; its output and errors."""
        process = self.start(["bash", "-euc", command] if isinstance(command, str) else command, **environment)
        out, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, out[-3000:] + errors[-3000:]
        return out, errors

    def commands(self, text: str) -> list[list[str]]:
        """The Python programs of a text, as the shell and the options make their command lines; none is run."""
        record = self.programs / "record"
        self.run(text, RECORD=str(record))
        return [[self.python, *call.split("\037")[:-1]] for call in record.read_text().split("\036")[:-1]]
