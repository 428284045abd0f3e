"""What the tests share: tiny models, preference data on disk, and the recorded reference runs where they exist."""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Read by the libraries when they are imported: no network, and a dataset cache of the tests' own.
CACHE = tempfile.mkdtemp(prefix="simpo-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": CACHE}
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core; more threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from warm import start as start_warm

from tiny_models import tiny_llama, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "scripts"))
os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"


# The files that take longest, in this order before all others: what the workers end with is short.
# DeepSpeed, which compiles a part of itself once, comes first in zero3; quickstart would be killed over it.
LONGEST = ["zero3", "cluster", "quickstart", "rounds", "decode", "engine", "rerun_torn", "rerun", "eval_pipeline"]
LONGEST += ["run_preference", "run_simpo", "golden", "pipeline", "run_reward", "distributed", "nodes", "token_batches"]


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_collection_finish():
    gc.freeze()  # the libraries stay: each trainer collects garbage, which takes half a second when it looks at them


def pytest_unconfigure():
    gc.unfreeze()
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of recorded reference runs and real data, kept outside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"recorded runs and real data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny_llama")


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> str:
    """A model that vLLM runs; its tokenizer adds BOS by itself, beside the one in the template."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama", tokenizer=tiny_tokenizer(adds_bos=True))


@pytest.fixture
def chance() -> random.Random:
    """Random moments, from a seed that pytest shows when the test fails."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def make_pairs(count: int, offset: int = 0) -> list[dict]:
    """Preference rows with prompts and answers of various lengths."""
    rows = []
    for i in range(offset, offset + count):
        prompt = [{"role": "user", "content": f"What is {i} plus {i % 7}?" + " Please think about it." * (i % 3)}]
        good, bad = f"{i} plus {i % 7} is {i + i % 7}.", f"Hard to say, maybe {i}." + " Who knows?" * (i % 4)
        rows.append(
            {
                "prompt": prompt[0]["content"],
                "chosen": [*prompt, {"role": "assistant", "content": good}],
                "rejected": [*prompt, {"role": "assistant", "content": bad}],
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write_jsonl(folder / "train.jsonl", make_pairs(48))
    write_jsonl(folder / "test.jsonl", make_pairs(8, offset=100))
    return str(folder)


@pytest.fixture
def config(tmp_path, model_folder, pairs_folder) -> Callable[..., str]:
    """Write a training YAML with the given changes (None removes a key) and return its path."""

    def write(**changes) -> str:
        values = {
            "model_name_or_path": model_folder,
            "dataset_mixer": {pairs_folder: 1.0},
            "use_cpu": True,
            "beta": 2.0,
            "gamma_beta_ratio": 0.5,
            "learning_rate": 1e-3,
            "max_length": 96,
            "max_prompt_length": 48,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "seed": 42,
            "output_dir": str(tmp_path / "out"),
        } | changes
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))  # JSON is YAML
        return str(path)

    return write


@pytest.fixture(scope="session")
def warm() -> Iterator[dict[str, str]]:
    """Environment variables with which programs start fast: see warm.py."""
    folder = Path(CACHE) / "warm"
    folder.mkdir()
    server = start_warm(folder)
    yield {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHON_EXEC": f"{folder}/python"}
    server.stdin.close()
    server.wait(600)


def run_script(
    *command: str, cwd: Path | None = None, timeout: int = 1800, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run a command with this Python's environment, as a user would type it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path} | (env or {})
    return subprocess.run(command, cwd=cwd or ROOT, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def fails(monkeypatch, capsys) -> Callable[..., str]:
    """Run a script's main() that must end with status 2; returns its error, which must be one line."""

    def run(main: Callable[[], None], *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["script.py", *argv])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


def losses(output_dir: str | Path) -> list[dict]:
    """The logged training steps of a finished run."""
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text())["log_history"]
    found = [entry for entry in history if "loss" in entry]
    assert found
    return found


# ---- of several files on one subject -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def armorm(tmp_path_factory) -> str:
    from tiny_reward_models import tiny_armorm

    return tiny_armorm(tmp_path_factory.mktemp("rm") / "armorm")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> Path:
    """Candidate responses to 24 prompts."""
    from annotate_world import write_candidates

    return write_candidates(tmp_path_factory.mktemp("candidates") / "all_outputs.json", 24)


@pytest.fixture
def run(monkeypatch) -> Callable[..., None]:
    """Run run_simpo.py's main()."""
    import run_simpo

    def run(*argv: str) -> None:
        monkeypatch.setattr(sys, "argv", ["run_simpo.py", *argv])
        run_simpo.main()

    return run


@pytest.fixture
def judged(monkeypatch, capsys, tmp_path):
    """Run judge.py on a benchmark's small files, which must end well; returns its errors and the rows it wrote."""

    from judge_world import judge_files, judged_rows

    import judge

    def run(benchmark: str, url: str, *options: str, **changed) -> tuple[str, list[dict]]:
        files = judge_files(tmp_path, benchmark, **changed)
        monkeypatch.setattr("sys.argv", ["judge.py", *files, "--base_url", url, "--concurrency", "2", *options])
        judge.main()
        return capsys.readouterr().err, judged_rows(tmp_path / "out")

    return run
