"""Files of the evaluation with one value changed, at random but always the same: read, or refused in one line."""

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, write_jsonl
from eval_files import judgment, ratings
from judge_world import judge_files

from benchmarks import find
from decoding import choose_decoding
from parts import JudgeFiles, Judging, ScoreFiles
from simpo.console import explain

VALUES = [
    None,
    True,
    0,
    -1,
    1e308,
    float("nan"),
    "",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": 1},
    ["a"],
    "\ud83d",
    "{b}",
    10**30,
]
EVAL = ROOT / "eval"


def mutated(value: Any, noise: random.Random) -> Any:
    """The value with one change somewhere in it: another value, a field missing, renamed or doubled."""
    if not isinstance(value, dict | list) or not value or noise.random() < 0.03:
        return deepcopy(noise.choice(VALUES))
    place = noise.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value, kind = value.copy(), noise.random()
    if kind < 0.1:
        del value[place]
    elif kind < 0.2 and isinstance(value, dict):
        value[f"{place}x"] = value.pop(place)
    elif kind < 0.2:
        value.append(deepcopy(value[place]))
    elif kind < 0.45:
        value[place] = deepcopy(noise.choice(VALUES))
    else:
        value[place] = mutated(value[place], noise)
    return value


def outcomes(count: int, attempt) -> list[bool]:
    """Whether each attempt (a function of a source of chance) was accepted; an error that is no line fails."""
    accepted = []
    for seed in range(count):
        try:
            attempt(random.Random(seed))
            accepted.append(True)
        except Exception as error:
            if not explain(error):
                raise
            accepted.append(False)
    return accepted


@pytest.mark.parametrize("benchmark", ["arenahard", "mt-bench"])
def test_what_is_judged(tmp_path, benchmark):
    options = judge_files(tmp_path, benchmark)
    paths = {key.removeprefix("--"): value for key, value in zip(options[::2], options[1::2], strict=True)}
    files = JudgeFiles(*(paths[key] for key in ("answers", "references", "judge_prompts", "questions")))
    whole = {path: Path(path).read_text() for path in files[:4]}

    def attempt(noise: random.Random) -> None:
        for path, text in whole.items():
            Path(path).write_text(text)
        path = Path(noise.choice(list(whole)))
        if path.suffix == ".yaml":
            path.write_text(yaml.safe_dump(mutated(yaml.safe_load(path.read_text()), noise)))
        else:
            rows = mutated([json.loads(line) for line in path.read_text().splitlines()], noise)
            path.write_text("\n".join(map(json.dumps, rows)) if isinstance(rows, list) else json.dumps(rows))
        assert isinstance(find(benchmark).judging(files), Judging)

    accepted = outcomes(100, attempt)
    assert 0 < sum(accepted) < 100


@pytest.mark.parametrize("benchmark", ["arenahard", "mt-bench"])
def test_what_is_scored(tmp_path, benchmark):
    rows = ratings() if benchmark == "mt-bench" else [judgment(f"q{i}", "A>B", "B>>A") for i in range(4)]

    def attempt(noise: random.Random) -> None:
        changed = [*rows]
        place = noise.randrange(len(rows))
        changed[place] = mutated(rows[place], noise)
        find(benchmark).score(ScoreFiles(str(write_jsonl(tmp_path / "j.jsonl", changed))))

    accepted = outcomes(60, attempt)
    assert 0 < sum(accepted) < 60


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("alpacaeval2", "alpacaeval2/configs/Llama-3-Instruct-8B-SimPO.yaml"),
        ("mt-bench", "mt-bench/Llama-3-Instruct-8B-SimPO.yaml"),
        ("arenahard", "arenahard/configs/Llama-3-Instruct-8B-SimPO/gen_answer_config.yaml"),
        ("arenahard", "arenahard/configs/Llama-3-Instruct-8B-SimPO/api_config.yaml"),
    ],
)
def test_configurations(tmp_path, benchmark, file):
    folder = tmp_path / "a" / "b"  # templates stand two folders above, as they are shipped
    folder.mkdir(parents=True)
    for part in (EVAL / file).parent.glob("*.yaml") if benchmark == "arenahard" else [EVAL / file]:
        (folder / part.name).write_text(part.read_text())
    (tmp_path / "templates").mkdir()
    for template in (EVAL / "arenahard" / "templates").iterdir():
        (tmp_path / "templates" / template.name).write_text(template.read_text())
    content, path = yaml.safe_load((EVAL / file).read_text()), folder / Path(file).name

    def attempt(noise: random.Random) -> None:
        path.write_text(yaml.safe_dump(mutated(content, noise)))
        settings = find(benchmark).read_settings(str(folder if benchmark == "arenahard" else path))
        choose_decoding(find(benchmark).decoding, settings, {}, legacy_ae062=False)

    outcomes(100, attempt)
