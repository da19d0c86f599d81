"""The first cell of every notebook, which also stands alone on Colab; `rehearse_colab.py` runs it there."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab.publishing import notebook

BOOK = Path(notebook.__file__).parents[2]
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))


def first_cell(path):
    return next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_with_the_cell_and_no_address(path):
    cell = first_cell(path)
    assert "".join(cell["source"]) == notebook.CELL, "run python -m lab.publishing.notebook"
    assert cell["metadata"] == notebook.METADATA
    said = "".join(cell["outputs"][0]["text"])
    assert len(cell["outputs"]) == 1 and said.startswith("minitensorpoly ") and said.count("\n") == 1


def test_an_address_is_written_into_the_cell_and_nowhere_else(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_bytes(NOTEBOOKS[0].read_bytes())
    assert not notebook.write_cell(path)
    assert path.read_bytes() == NOTEBOOKS[0].read_bytes()
    assert notebook.write_cell(path, "https://example.org/a.git")
    before, after = NOTEBOOKS[0].read_text().splitlines(), path.read_text().splitlines()
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1 and 'REPOSITORY = \\"https://example.org/a.git\\"' in changed[0][1]
    assert notebook.write_cell(path)  # and out again
    assert path.read_bytes() == NOTEBOOKS[0].read_bytes()


def test_a_notebook_that_begins_otherwise_is_left_alone(tmp_path):
    path = tmp_path / "b.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1"], "metadata": {}}]}))
    before = path.read_text()
    with pytest.raises(ValueError, match="b.ipynb: its first cell of code must begin with '# @title Set up'"):
        notebook.write_cell(path)
    assert path.read_text() == before


def test_a_notebook_alone_says_what_to_do(tmp_path):
    done = subprocess.run([sys.executable, "-c", notebook.CELL], cwd=tmp_path, capture_output=True, text=True)
    assert "not in its folder: open it in the folder `book` of a clone" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_notebook_alone_clones_the_book_and_imports_it(tmp_path):
    """With a small repository in place of the book's."""
    folder = tmp_path / "source" / "book" / "lab" / "publishing"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "notebook.py").write_text("def ready():\n    print('ready', __file__)\n")
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-m", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path / "source", check=True, capture_output=True)
    alone = tmp_path / "alone"
    alone.mkdir()
    cell = notebook.CELL.replace('""', json.dumps((tmp_path / "source").as_uri()))
    command = [sys.executable, "-c", f"{cell}\nos.chdir({str(alone)!r})\n{cell}"]  # run twice
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True)
    place = alone / "minitensorpoly-book" / "book" / "lab" / "publishing" / "notebook.py"
    assert done.stdout == f"ready {place}\n" * 2, done.stderr


def test_only_what_is_missing_is_installed_and_never_torch(monkeypatch, capsys):
    commands, found = [], importlib.util.find_spec

    def find_spec(name):
        return None if name in ("peft", "scipy") else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    notebook.ready()
    assert commands == [[sys.executable, "-m", "pip", "install", "--quiet", "scipy", "peft"]]
    assert "torch" not in notebook.NEEDED
    installing, checked = capsys.readouterr().out.splitlines()
    assert installing == "installing scipy peft"
    assert f"6 methods work; torch {torch.__version__}" in checked
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="torch is missing"):
        notebook.ready()


def test_what_the_notebooks_import_is_needed_or_comes_along():
    """Of the packages that requirements.txt calls for, those that the book imports can be installed."""
    imported = set()
    for path in [*NOTEBOOKS, *(BOOK / "lab").rglob("*.py")]:
        for line in path.read_text().replace("\\n", "\n").splitlines():
            words = line.strip(' "').split()
            if words[:1] in (["import"], ["from"]) and len(words) > 1:
                imported.add(words[1].partition(".")[0].strip('",'))
    brought = set(sys.stdlib_module_names) | {"torch", "lab", "minitensorpoly", ""}
    along = {"numpy", "tokenizers", "yaml", "cycler"}  # with transformers, with matplotlib
    tools = {"nbformat", "nbclient", "psutil", "playwright"}  # of lab.publishing, which no notebook calls
    words = {name for name in imported - brought - along - tools if importlib.util.find_spec(name)}
    assert words <= set(notebook.NEEDED), words - set(notebook.NEEDED)
