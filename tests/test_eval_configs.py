"""The shipped configurations of the benchmarks: they parse and fit their models; others are refused."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from eval_world import write_alpaca_config

from benchmarks import find, names
from decoding import Decoding, Settings, choose_decoding
from generate_answers import GenerateArguments
from parts import Question
from prompting import check_stop_ids
from simpo.console import UserError

EVAL = ROOT / "eval"
ALPACA = sorted((EVAL / "alpacaeval2" / "configs").glob("*.yaml"))
NAMES = [path.stem for path in ALPACA]


def test_every_released_model_has_every_configuration():
    assert len(NAMES) == 13
    assert {path.stem for path in (EVAL / "mt-bench").glob("*.yaml")} == set(NAMES)
    assert {path.name for path in (EVAL / "arenahard" / "configs").iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configurations(name):
    alpaca = find("alpacaeval2").read_settings(str(EVAL / "alpacaeval2" / "configs" / f"{name}.yaml"))
    arena = find("arenahard").read_settings(str(EVAL / "arenahard" / "configs" / name))
    mt = find("mt-bench").read_settings(str(EVAL / "mt-bench" / f"{name}.yaml"))
    assert alpaca.name == arena.name == mt.name == name
    is_llama, is_gemma = "llama" in name.lower(), "gemma" in name
    ends = [128001, 128009] if is_llama else [1, 107] if is_gemma else None
    assert alpaca.decoding.get("stop_token_ids") == ends
    assert ("<|eot_id|>" in alpaca.prompt_template) == is_llama
    assert ("header_id" in Path(arena.chat_template).read_text()) == is_llama
    assert arena.decoding == {"temperature": 0.0, "max_tokens": 4096, "stop_token_ids": ends or [2]}
    expected = {"Mistral-7B-Base": (0.7, 2048), "Mistral-7B-Instruct": (0.5, 2048), "Llama-3": (0.9, 4096)}
    for start, (temperature, tokens) in expected.items():
        if name.startswith(start):
            assert (alpaca.decoding["temperature"], alpaca.decoding["max_tokens"]) == (temperature, tokens)
            assert alpaca.do_sample
    if "WPO" in name:
        wpo = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": 0.1}
        assert wpo.items() <= alpaca.decoding.items() and not alpaca.do_sample
    judge = yaml.safe_load((EVAL / "arenahard" / "configs" / name / "judge_config.yaml").read_text())
    assert judge["judge_model"] == "gpt-4-1106-preview" and judge["model_list"] == [name]


def test_alpaca_eval_reads_the_shipped_configurations():
    """The package's own reader and its vLLM decoder's arguments."""
    utils = pytest.importorskip("alpaca_eval.utils", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
    pandas = pytest.importorskip("pandas")
    for path in ALPACA:
        entry = utils.load_configs(path)[path.stem]
        template = utils.read_or_return(entry["prompt_template"], relative_to=EVAL / "alpacaeval2")
        assert utils.make_prompts(pandas.DataFrame([{"instruction": "x"}]), template)[0] == [
            template.replace("{instruction}", "x")
        ]
        sampling = set(entry["completions_kwargs"]) - {"model_name", "model_kwargs", "max_new_tokens"}
        assert sampling <= {field for field in Decoding.__dataclass_fields__}  # what vLLM's SamplingParams takes


def test_legacy_decoding_is_greedy_and_only_for_do_sample():
    base = EVAL / "alpacaeval2" / "configs"
    simpo = find("alpacaeval2").read_settings(str(base / "Llama-3-Instruct-8B-SimPO.yaml"))
    wpo = find("alpacaeval2").read_settings(str(base / "gemma-2-9b-it-WPO-HB.yaml"))
    assert choose_decoding(find("alpacaeval2").decoding, simpo, {}, legacy_ae062=True).temperature == 0
    assert choose_decoding(find("alpacaeval2").decoding, simpo, {}, legacy_ae062=False).temperature == 0.9
    assert (
        choose_decoding(find("alpacaeval2").decoding, simpo, {"temperature": 0.2}, legacy_ae062=False).temperature
        == 0.2
    )
    with pytest.raises(UserError, match="drop --legacy_ae062"):
        choose_decoding(find("alpacaeval2").decoding, wpo, {}, legacy_ae062=True)


def test_mt_bench_temperatures():
    decoding = choose_decoding(find("mt-bench").decoding, Settings(), {}, legacy_ae062=False)
    expected = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
    expected |= dict.fromkeys(["extraction", "math", "coding", "reasoning"], 0.0)
    questions = {name: Question(1, ["One?", "Two?"], {"category": name}) for name in expected}
    sampling = {name: find("mt-bench").sampling(decoding, question) for name, question in questions.items()}
    assert {name: values["temperature"] for name, values in sampling.items()} == expected


def test_stop_tokens_of_another_family():
    with pytest.raises(UserError, match="128001 is no token of this model"):
        check_stop_ids(Decoding(stop_token_ids=[128001, 128009]), vocabulary=32000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temprature": 0.1}, "unknown key 'temprature'"),
        ({"temperature": "hot"}, "temperature: 'hot' does not fit"),
        ({"model_kwargs": {"gpus": 2}}, "unknown key 'gpus'"),
        ({"top_p": 0.0}, "top_p: must lie in"),
        ({"max_new_tokens": 0}, "max_tokens: must be at least 1"),
    ],
)
def test_bad_configurations(tmp_path, change, words):
    with pytest.raises(UserError, match=re.escape(words)):
        settings = find("alpacaeval2").read_settings(str(write_alpaca_config(tmp_path, "{instruction}", **change)))
        choose_decoding(find("alpacaeval2").decoding, settings, {}, legacy_ae062=False)


def test_configuration_of_another_benchmark(tmp_path):
    with pytest.raises(UserError, match="unknown key 'name'"):
        find("mt-bench").read_settings(str(write_alpaca_config(tmp_path, "{instruction}")))
    with pytest.raises(UserError, match="one key, the generator's name"):
        find("alpacaeval2").read_settings(str(EVAL / "mt-bench" / f"{NAMES[0]}.yaml"))
    with pytest.raises(UserError, match="no such configuration file"):
        find("arenahard").read_settings(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no file templates/none\.txt"):
        find("alpacaeval2").read_settings(str(write_alpaca_config(tmp_path, "templates/none.txt")))


def test_generate_arguments():
    with pytest.raises(UserError, match="benchmark: 'mtbench' is none of"):
        GenerateArguments(benchmark="mtbench", model="m")
    for benchmark in names():
        with pytest.raises(UserError, match="model: not given"):
            GenerateArguments(benchmark=benchmark)
