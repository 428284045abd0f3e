"""Command blocks of the pages, run as they stand: trainings, and the check of prompts. pages.RUN has the others."""

import pytest
from conftest import losses
from pages import Checkout, block

pytestmark = pytest.mark.slow
TRAININGS = {  # folder of the model, and what the summary says of the first loss
    ("llama-3-8b-instruct-simpo", "about 1.600"): block("README.md", "conda env create"),
    ("llama-3-8b-base-sft", ""): block("README.md", "run_sft.py"),
    ("llama-8b-instruct-wpo", "at most 0.693"): block("README.md", "run_wpo.py"),
    ("llama-3-8b-instruct-ipo", "about 1.000"): block("README.md", "run_preference.py"),
    ("mine", "about 5.007"): block("README.md", "gemma-2-9b-it-simpo.yaml"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm):
    return Checkout(tmp_path_factory.mktemp("pages"), warm)


@pytest.mark.parametrize(("output", "first_loss"), TRAININGS)
def test_training(checkout, output, first_loss):
    out, errors = checkout.run(TRAININGS[output, first_loss])
    assert "old spellings" not in errors
    folder = checkout.folder / "outputs" / output
    assert (folder / "model.safetensors").is_file() and f"model in {folder}" in out
    assert len(losses(folder)) == 2 and (not first_loss or f"first loss  {first_loss} expected" in out)


def test_the_same_command_on_two_pages_trains_once(checkout):
    checkout.run(block("README.md", "run_preference.py"))
    out, _ = checkout.run(block("docs/objectives.md", "run_preference.py"))
    assert "outputs/llama-3-8b-instruct-ipo holds this run, finished" in out


def test_check_of_prompts(checkout):
    (checkout.folder / "MODEL").symlink_to(checkout.folder / "princeton-nlp" / "Llama-3-Instruct-8B-SimPO")
    out, _ = checkout.run(block("eval/README.md", "check_prompts.py"))
    assert out.count("all prompts agree") == 3
