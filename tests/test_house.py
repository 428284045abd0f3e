"""The structure: who may import whom."""

import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from conftest import ROOT

LAYERS = ["train", "objectives", "logps", "data", "chat", "config", "folder", "model_files", "files", "console"]
BESIDE = {  # what a package outside the row of layers may import
    "engine": {"console", "files", "folder", "model_files"},
    "judge": {"console", "folder", "chat"},
}
PROGRAMS = ["scripts", "on_policy_data_gen", "eval", "benchmarks", "examples", "generate.py"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("simpo", cache_dir=None)


def test_no_package_imports_upwards(graph):
    illegal = graph.find_illegal_dependencies_for_layers([f"simpo.{name}" for name in LAYERS])
    assert not illegal, illegal


def test_every_package_has_its_place(graph):
    assert {child.removeprefix("simpo.") for child in graph.find_children("simpo")} == {*LAYERS, *BESIDE}
    for name, allowed in BESIDE.items():
        for module in graph.find_descendants(f"simpo.{name}") | {f"simpo.{name}"}:
            found = {other.split(".")[1] for other in graph.find_modules_directly_imported_by(module)}
            assert found <= allowed | {name}, module


def test_no_module_imports_in_a_circle(graph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError, which names the circle


def python_files(place: str) -> list[Path]:
    path = ROOT / place
    files = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    assert files, place
    return files


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def modules_of(place: str) -> dict[str, Path]:
    """The modules of a program's folder by the names under which its own scripts import them."""
    root = ROOT / place
    return {".".join(file.relative_to(root).with_suffix("").parts): file for file in python_files(place)}


INSTALLED = {"simpo_config", "simpo_trainer", "wpo_config", "wpo_trainer"}  # importable everywhere (setup.py)


@pytest.mark.parametrize("place", PROGRAMS)
def test_a_folder_of_programs_imports_its_own_modules_and_the_package_only(place):
    """Nothing imports the tests. A benchmark also imports what it measures."""
    measured = {"on_policy_data_gen"} if place == "benchmarks" else set()
    folders = [other for other in PROGRAMS if "." not in other and other not in {place, *measured}]
    others = {name for other in folders for name in modules_of(other)}
    others -= INSTALLED | set(modules_of(place) if "." not in place else ())
    others |= {file.stem for file in (ROOT / "tests").glob("*.py")} | {"alignment"}
    for file in python_files(place):
        wrong = others & {name.removesuffix(".") for name in imported(file)}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("place", ["scripts", "on_policy_data_gen", "eval"])
def test_programs_do_not_import_in_a_circle(place):
    modules = modules_of(place)
    imports = defaultdict(set)
    for name, file in modules.items():
        imports[name] = {other for other in imported(file) if other in modules}
    list(graphlib.TopologicalSorter(imports).static_order())


def test_the_package_imports_no_program():
    programs = {name for place in PROGRAMS if "." not in place for name in modules_of(place)}
    for file in python_files("simpo"):
        assert not programs & set(imported(file)), file


@pytest.mark.parametrize("place", ["simpo", "alignment", *PROGRAMS])
def test_no_search_path_is_changed(place):
    """Scripts find their own folder without help, and the package is installed."""
    for file in python_files(place):
        assert "sys.path" not in file.read_text(encoding="utf-8"), file
