"""The repository and what is installed from it: the layout, the arrows between the packages, the README's commands."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GRAPHICAL = {"PySide6", "shiboken6", "Qt", "NodeGraphQt", "pyqtgraph"}
OPTIONAL = GRAPHICAL | {"pyarrow", "ray", "torch"}
SLOW = {"onnx", "onnx_ir", "onnx_shape_inference", "onnxruntime", "sympy"}


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def imports(path: Path) -> Iterator[str]:
    """The top-level names of all that a module imports, at any depth of it, `import_module("literal")` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import that leaves its package is an error at run time: it stays at home.
            yield (node.module or "").partition(".")[0] if node.level == 0 else path.relative_to(ROOT).parts[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value).partition(".")[0] for a in node.args[:1] if isinstance(a, ast.Constant))


def readme_lines(first_word: str) -> list[list[str]]:
    """The commands of the README's code blocks that start with a word, split, without their comments."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    commands = [line.partition("#")[0].split() for block in blocks for line in block.splitlines()]
    return [words for words in commands if words[:1] == [first_word]]


@pytest.mark.parametrize(
    "name",
    [
        *("pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", ".ci/run"),
        *("qmoe_node/__init__.py", "runtime/__init__.py", "ui/__init__.py"),
        *("snippets", "examples/character_model.py", "benchmarks/__main__.py", "tests/conformance.py", "docs"),
    ],
)
def test_the_repository_has_what_it_promises(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("statement", ["import runtime", "import runtime.graph", "import runtime.cli"])
def test_the_runtime_is_imported_without_what_is_slow_or_optional(statement: str) -> None:
    loaded = modules_after(statement)
    assert "runtime" in loaded
    assert not loaded & (OPTIONAL | SLOW | {"qmoe_node", "ui"})


@pytest.mark.parametrize("statement", ["import qmoe_node", "import runtime, qmoe_node; runtime.load, runtime.Session"])
def test_nothing_headless_loads_what_is_optional(statement: str) -> None:
    loaded = modules_after(statement)
    assert "qmoe_node" in loaded
    assert not loaded & (OPTIONAL | {"ui"})


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("runtime", {"qmoe_node", "ui", "tests", "benchmarks", *GRAPHICAL, "torch"}),
        ("qmoe_node", {"ui", "tests", "benchmarks", *GRAPHICAL, "torch"}),
        ("ui", {"qmoe_node", "tests", "benchmarks", "torch"}),
    ],
)
def test_arrows_run_one_way(package: str, forbidden: set[str]) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path in modules for name in imports(path) if name in forbidden]
    assert not wrong


def test_the_base_install_asks_for_everything_that_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.split(r"[<>=;\[ ]", text)[0].lower().replace("-", "_") for text in project["dependencies"]}
    required = {{"pyyaml": "yaml", "protobuf": "google", "pillow": "PIL"}.get(name, name) for name in required}
    at_home = {"qmoe_node", "runtime", *sys.stdlib_module_names}
    used = {
        name
        for package in ("runtime", "qmoe_node")
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
    }
    assert used - at_home - required <= {"llvmlite", "numba", "pyarrow", "ray"}, (
        "only the extras `cluster` and `fast` may be asked for at run time"
    )


def test_the_installed_distribution_brings_the_command_and_the_plug_in() -> None:
    entry_points = importlib.metadata.distribution("qmoe-studio").entry_points
    assert [point.value for point in entry_points.select(group="console_scripts", name="qmoe")] == ["runtime.cli:main"]
    plug_ins = {point.value for point in entry_points.select(group="qmoe.nodes")}
    assert plug_ins == {"qmoe_node.node:QMoE", "qmoe_node.grad:QMoEGrad"}
    assert all(callable(point.load()) for point in entry_points)


def test_the_wheel_holds_the_packages_and_the_snippets_and_no_tests(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("qmoe_studio-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.partition("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"qmoe_node", "runtime", "ui"}
    assert {"qmoe_node/py.typed", "runtime/py.typed", "runtime/graph.py", "ui/__init__.py"} <= names
    shipped = {f"qmoe_node/snippets/{path.name}" for path in (ROOT / "snippets").iterdir() if path.is_file()}
    assert shipped
    assert shipped <= names


def test_every_make_command_of_the_readme_is_in_the_makefile() -> None:
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    named = {words[1] for words in readme_lines("make")} | set(re.findall(r"`make ([a-z-]+)`", readme))
    assert {"run", "test", "bench", "conformance"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("command", sorted({words[1] for words in readme_lines("qmoe")}))
def test_every_qmoe_command_of_the_readme_is_there(command: str) -> None:
    run = [sys.executable, "-c", "from runtime.cli import main; main()", command, "--help"]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
