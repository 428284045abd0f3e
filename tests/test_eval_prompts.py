"""eval/check_prompts.py catches planted disagreements between training, the benchmarks and the tokenizer."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from eval_world import write_alpaca_config
from transformers import AutoTokenizer

from benchmarks import find
from check_prompts import main
from prompting import Prompter
from simpo.chat.variables import fix_variables
from tiny_models import tiny_tokenizer

EVAL = ROOT / "eval"
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


def test_two_bos_by_template_and_tokenizer(check, llama, tmp_path):
    status, output = check(llama(), write_alpaca_config(tmp_path, "<|begin_of_text|>" + LLAMA3 + HEADER))
    assert status == 1
    assert [line.split(":")[0] for line in disagreements(output)] == [
        "alpacaeval2 prompt as the official tool feeds it"
    ]
    assert "BOS comes 2 times" in output
    assert check(llama(adds_bos=False), write_alpaca_config(tmp_path, "<|begin_of_text|>" + LLAMA3 + HEADER))[0] == 0


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


def test_no_bos(check, llama, tmp_path):
    status, output = check(llama(adds_bos=False), write_alpaca_config(tmp_path, LLAMA3 + HEADER))
    assert status == 1 and "does not begin with BOS" in output
    assert check(llama(adds_bos=True), write_alpaca_config(tmp_path, LLAMA3 + HEADER))[0] == 0


def test_missing_header_in_the_benchmark(check, llama, tmp_path):
    status, output = check(llama(), write_alpaca_config(tmp_path, LLAMA3))
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


def test_instructions_that_spell_special_tokens_stay_text(llama):
    tokenizer = tiny_tokenizer(adds_bos=True)
    message = [{"role": "user", "content": "What does <|eot_id|> or <|begin_of_text|> mean?"}]
    for template in (None, "<|begin_of_text|>" + LLAMA3 + HEADER):
        ids = Prompter(tokenizer, template).token_ids(message)
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 1
        assert "<|eot_id|> or <|begin_of_text|> mean" in tokenizer.decode(ids)
