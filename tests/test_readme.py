"""The texts for users: programs run, links lead somewhere, snippets load, lists are complete."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.check import check
from runtime.snippets import commands as snippet_commands
from runtime.snippets import loads

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", ROOT / "snippets" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def blocks(language: str) -> list[object]:
    """The code blocks of a language in all pages."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [pytest.param(text, id=f"{page.stem}-{number}") for number, text in enumerate(texts)]
    return found


@pytest.mark.parametrize("program", blocks("python"))
def test_programs_run_as_they_stand(program: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "snippets", tmp_path / "snippets")
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.parametrize("text", blocks("yaml"))
def test_snippets_load_and_are_right(text: str) -> None:
    assert check(loads(text)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_file_has_its_line_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- `([^`]+\.py)`:", text, re.MULTILINE)
    files = [
        str(path.relative_to(ROOT).as_posix())
        for package in ("runtime", "qmoe_node", "ui")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert sorted(listed) == sorted(files)


def test_every_option_has_its_line_on_the_page_of_the_command_line() -> None:
    import typer.main

    from runtime.cli import add_plug_ins, app

    add_plug_ins()

    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `qmoe ([\w-]+)[^`]*`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(sections) == set(commands)
    everything = [
        (name, one) for name, top in commands.items() for one in (top, *getattr(top, "commands", {}).values())
    ]
    for name, command in everything:
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--") and option != "--help"]
            assert all(f"`{option}" in sections[name] for option in options), (name, options)


def test_pictures_hold_the_graphs_that_they_show() -> None:
    """Every snippet has a picture, equal to it; and no picture in the docs that holds a graph has been spoiled."""
    snippets = {path.stem for path in (ROOT / "snippets").glob("*.yaml")}
    assert snippets == {path.stem for path in (ROOT / "snippets").glob("*.png")}
    assert not snippet_commands.check([ROOT / "snippets", ROOT / "docs"], as_json=False)


def test_a_spoiled_picture_is_found(tmp_path: Path) -> None:
    for name in ("digits_moe.png", "digits_moe.yaml", "digits_moe.safetensors"):
        shutil.copy(ROOT / "snippets" / name, tmp_path)
    assert not snippet_commands.check([tmp_path], as_json=False)
    text = (tmp_path / "digits_moe.yaml").read_text()
    (tmp_path / "digits_moe.yaml").write_text(text.replace("k: 2", "k: 1", 1))
    assert snippet_commands.check([tmp_path], as_json=False)
