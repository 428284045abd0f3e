"""eval/check_prompts.py catches planted disagreements; the shipped configurations parse and fit their models."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from transformers import AutoTokenizer

from benchmarks import find, names
from check_prompts import main
from decoding import Decoding, Settings, choose_decoding
from generate_answers import GenerateArguments
from parts import Question
from prompting import Prompter, check_stop_ids
from simpo.chat.variables import fix_variables
from simpo.console import UserError
from tiny_models import tiny_tokenizer

EVAL = ROOT / "eval"
ALPACA = sorted((EVAL / "alpacaeval2" / "configs").glob("*.yaml"))
NAMES = [path.stem for path in ALPACA]
LLAMA3 = "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture
def check(monkeypatch, capsys):
    """Run check_prompts.py; returns its exit status and what it printed."""

    def run(model: str | Path, config: str | Path | None = None) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["check_prompts.py", str(model), *([str(config)] if config else [])])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture
def llama(tmp_path):
    """Write a Llama-3-like tokenizer that adds BOS by itself, with changes to its template."""

    def write(adds_bos: bool = True, change=lambda template: template) -> Path:
        tokenizer = tiny_tokenizer(adds_bos=adds_bos)
        tokenizer.chat_template = change(tokenizer.chat_template)
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        return tmp_path / "tokenizer"

    return write


@pytest.fixture
def alpaca_config(tmp_path):
    def write(template: str, **kwargs) -> Path:
        entry = {"prompt_template": template, "fn_completions": "vllm_local_completions", "completions_kwargs": kwargs}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": entry}))
        return tmp_path / "config.yaml"

    return write


def disagreements(output: str) -> list[str]:
    return [line.removeprefix("DISAGREE: ") for line in output.splitlines() if line.startswith("DISAGREE: ")]


# --- agreement


def test_llama_that_adds_its_own_bos_agrees(check, llama):
    """Training and answering both see one BOS, whoever writes it; that text would get two is said."""
    status, output = check(llama())
    assert status == 0 and "all prompts agree" in output
    counts = [int(count) for count in re.findall(r"(\d+) BOS", output)]
    assert len(counts) == 6 and set(counts) == {1}
    assert "would get a second BOS" in output
    assert "would get a second BOS" not in check(llama(adds_bos=False))[1]


@pytest.mark.slow
def test_real_mistral_tokenizers_agree(check, shared, tmp_path):
    folder = shared / "tokenizers"
    assert check(folder / "mistral_v1")[0] == 0
    (tmp_path / "train.yaml").write_text("model_name_or_path: some/zephyr\nauto_insert_empty_system_msg: false\n")
    assert check(folder / "zephyr", tmp_path / "train.yaml")[0] == 0
    name = "Mistral-7B-Instruct-SimPO"
    for config in (f"alpacaeval2/configs/{name}.yaml", f"arenahard/configs/{name}", f"mt-bench/{name}.yaml"):
        assert check(folder / "mistral_v1", EVAL / config)[0] == 0


def tokenizer_folder(folder: Path, template: str, **specials: str) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(specials)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_bos_that_begins_every_turn_counts_at_the_start(check, tmp_path):
    specials = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert check(tokenizer_folder(tmp_path / "chatml", CHATML, **specials))[0] == 0
    status, output = check(tokenizer_folder(tmp_path / "twice", "{{ bos_token }}" + CHATML, **specials))
    assert status == 1 and "training example: BOS comes 2 times" in output


def test_mistral_base_is_asked_as_it_was_trained(shared):
    """With an empty system message. The space behind BOS is the published file's, and one token to this tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "zephyr")
    settings = find("alpacaeval2").read_settings(str(EVAL / "alpacaeval2/configs/Mistral-7B-Base-SFT-SimPO.yaml"))
    asked = Prompter(tokenizer, settings.prompt_template).token_ids([{"role": "user", "content": "Hi"}])
    trained = tokenizer.apply_chat_template(
        [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    space = tokenizer.convert_tokens_to_ids("▁")
    assert asked == [tokenizer.bos_token_id, space, *tokenizer(trained, add_special_tokens=False)["input_ids"]]


def test_the_template_without_bos_is_the_other_one_less_bos():
    with_bos, without = ((EVAL / "alpacaeval2/templates" / f"llama3{end}.txt").read_text() for end in ("", "-nobos"))
    assert with_bos == "<|begin_of_text|>" + without


# --- planted disagreements


def test_two_bos_by_template_and_tokenizer(check, llama, alpaca_config):
    status, output = check(llama(), alpaca_config("<|begin_of_text|>" + LLAMA3 + HEADER))
    assert status == 1
    assert [line.split(":")[0] for line in disagreements(output)] == [
        "alpacaeval2 prompt as the official tool feeds it"
    ]
    assert "BOS comes 2 times" in output
    assert check(llama(adds_bos=False), alpaca_config("<|begin_of_text|>" + LLAMA3 + HEADER))[0] == 0


def test_two_bos_by_the_template_alone(check, llama):
    status, output = check(llama(change=lambda template: "{{ bos_token }}" + template))
    assert status == 1 and "decode prompt: the template itself writes BOS more than once" in output
    assert re.search(r"training example: BOS comes \d times", output)


def test_bos_of_every_message(check, llama):
    """Wrong in the second turn only."""
    status, output = check(
        llama(
            change=lambda t: t.replace("bos_token if loop.first else ''", "bos_token if loop.index0 % 2 == 0 else ''")
        )
    )
    assert status == 1 and disagreements(output) == ["mt-bench turn 2: the template itself writes BOS more than once"]


def test_no_bos(check, llama, alpaca_config):
    status, output = check(llama(adds_bos=False), alpaca_config(LLAMA3 + HEADER))
    assert status == 1 and "does not begin with BOS" in output
    assert check(llama(adds_bos=True), alpaca_config(LLAMA3 + HEADER))[0] == 0


def test_missing_header_in_the_benchmark(check, llama, alpaca_config):
    status, output = check(llama(), alpaca_config(LLAMA3))
    assert status == 1 and f"the assistant header {HEADER.strip()!r}, which the model was trained" in output


def test_missing_header_in_the_tokenizer(check, llama):
    """A template without generation prompt: training has the header in the response, decoding has none."""
    status, output = check(llama(change=lambda template: template[: template.index("{%- if add_generation_prompt")]))
    assert status == 1
    assert "decode prompt: the assistant header '<|start_header_id|>assistant<|end_header_id|>'" in output


def test_other_template_in_the_benchmark(check, shared):
    tokenizer = shared / "tokenizers" / "mistral_v1"
    status, output = check(tokenizer, EVAL / "alpacaeval2" / "configs" / "Mistral-7B-Base-SFT-SimPO.yaml")
    assert status == 1 and "alpacaeval2 prompt: another template than training" in output


def prompts_of(output: str) -> list[str]:
    return [line.partition(":")[0] for line in disagreements(output)]


EVERY_PROMPT = ["decode prompt", "alpacaeval2 prompt", "arenahard prompt", "mt-bench prompt"]


def test_other_template_in_training(check, llama, tmp_path):
    (tmp_path / "train.yaml").write_text(
        "model_name_or_path: some/llama\nchat_template: zephyr\nlearning_rate: 1.0e-6\n"
    )
    status, output = check(llama(), tmp_path / "train.yaml")
    assert status == 1 and sorted(prompts_of(output)) == sorted(EVERY_PROMPT)
    assert all("another template than training" in line for line in disagreements(output))


def test_training_that_reads_mistral_in_the_name(check, shared, tmp_path):
    """run_simpo.py replaces the template of whatever has "mistral" in its path; decoding keeps Zephyr's."""
    shutil.copytree(shared / "tokenizers" / "zephyr", tmp_path / "my-mistral")
    status, output = check(tmp_path / "my-mistral")
    assert status == 1 and "decode prompt: another template than training" in output


def test_empty_system_message_in_training_alone(check, llama, tmp_path):
    """Zephyr's template has a place for one, which training fills; the other prompts have none."""
    zephyr = (ROOT / "simpo" / "chat" / "templates" / "zephyr.jinja").read_text()
    status, output = check(tokenizer_folder(tmp_path / "zephyr", "{{ bos_token }}" + zephyr))
    assert status == 1 and sorted(prompts_of(output)) == sorted(EVERY_PROMPT)
    assert all("another system message than training" in line for line in disagreements(output))


THINKS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ EMPTY }}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


def test_blocks_of_thoughts(check, tmp_path):
    folder = tokenizer_folder(tmp_path / "thinks", THINKS.replace("EMPTY", "''"))
    status, output = check(folder)  # asked inside its thoughts, trained without any
    assert status == 1 and prompts_of(output) == ["training example"] and "<think>" in disagreements(output)[0]
    (tmp_path / "train.yaml").write_text("chat_template_kwargs: {enable_thinking: false}\n")
    status, output = check(folder, tmp_path / "train.yaml")  # trained without thinking, asked with it
    assert status == 1 and sorted(prompts_of(output)) == sorted(EVERY_PROMPT)
    assert all("another block of thoughts than training" in line for line in disagreements(output))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fix_variables(tokenizer, tokenizer.chat_template, {"enable_thinking": False})
    tokenizer.save_pretrained(tmp_path / "trained")  # as training saves it
    assert check(tmp_path / "trained", tmp_path / "train.yaml")[0] == 0


def test_template_that_refuses_training(check, llama):
    status, output = check(
        llama(change=lambda t: "{% if messages | length == 2 %}{{ raise_exception('one') }}{% endif %}" + t)
    )
    assert status == 1 and disagreements(output) == [
        "training example: the chat template refuses the conversation: one"
    ]


def test_check_prompts_bad_input(fails, tmp_path, llama):
    assert "cannot load the tokenizer" in fails(main, str(tmp_path / "nothing"))
    assert "no such configuration file" in fails(main, str(llama()), str(tmp_path / "no.yaml"))
    assert "required: model" in fails(main)


# --- prompts and configurations


def test_instructions_that_spell_special_tokens_stay_text(llama):
    tokenizer = tiny_tokenizer(adds_bos=True)
    message = [{"role": "user", "content": "What does <|eot_id|> or <|begin_of_text|> mean?"}]
    for template in (None, "<|begin_of_text|>" + LLAMA3 + HEADER):
        ids = Prompter(tokenizer, template).token_ids(message)
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 1
        assert "<|eot_id|> or <|begin_of_text|> mean" in tokenizer.decode(ids)


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
def test_bad_configurations(alpaca_config, change, words):
    with pytest.raises(UserError, match=re.escape(words)):
        settings = find("alpacaeval2").read_settings(str(alpaca_config("{instruction}", **change)))
        choose_decoding(find("alpacaeval2").decoding, settings, {}, legacy_ae062=False)


def test_configuration_of_another_benchmark(alpaca_config, tmp_path):
    with pytest.raises(UserError, match="unknown key 'name'"):
        find("mt-bench").read_settings(str(alpaca_config("{instruction}")))
    with pytest.raises(UserError, match="one key, the generator's name"):
        find("alpacaeval2").read_settings(str(EVAL / "mt-bench" / f"{NAMES[0]}.yaml"))
    with pytest.raises(UserError, match="no such configuration file"):
        find("arenahard").read_settings(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no file templates/none\.txt"):
        find("alpacaeval2").read_settings(str(alpaca_config("templates/none.txt")))


def test_generate_arguments():
    with pytest.raises(UserError, match="benchmark: 'mtbench' is none of"):
        GenerateArguments(benchmark="mtbench", model="m")
    for benchmark in names():
        with pytest.raises(UserError, match="model: not given"):
            GenerateArguments(benchmark=benchmark)
