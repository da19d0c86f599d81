"""What the project promises of itself."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from common import T5, make_t5
from lab import backbone

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def code_lines(path):
    """Lines with code: no blank lines, comments or docstrings."""
    source = path.read_text()
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def test_library_has_about_500_lines():
    assert 300 < sum(code_lines(file) for file in (ROOT / "minitensorpoly").glob("*.py")) <= 520


def test_library_imports_nothing_but_torch():
    program = (
        "import sys, torch; known = set(sys.modules); import minitensorpoly; print(*set(sys.modules) - known)"
    )
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    packages = {name.partition(".")[0] for name in imported.stdout.split()}
    assert "minitensorpoly" in packages
    assert packages <= {"minitensorpoly", "torch"} | set(sys.stdlib_module_names)


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_no_file_names_a_path_of_some_machine():
    pattern = re.compile("/" + r"(root|tmp|work|home|Users)/\w")
    for file in tracked_files():
        if file.suffix not in (".safetensors", ".png"):
            assert not pattern.search(file.read_text()), file


def test_every_requirement_is_pinned_exactly():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    lines = [line for line in lines if line]
    assert len(lines) > 50 and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(names) == len(set(names))


def test_versions_are_pinned_in_no_other_file():
    pattern = re.compile(r"[A-Za-z]==\d+\.\d")
    for file in tracked_files():
        exempt = file.name in ("requirements.txt", "test_project.py")
        if not exempt and file.suffix not in (".safetensors", ".png"):
            assert not pattern.search(file.read_text()), file


def pages_of(entry):
    """Every page that an entry of the table of contents names, those below it included."""
    below = [part for key in ("parts", "chapters", "sections") for part in entry.get(key, [])]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [page for part in below for page in pages_of(part)]


def test_every_page_of_the_table_of_contents_exists():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = pages_of(contents)
    for page in pages:
        assert any((ROOT / f"{page}{ending}").exists() for ending in (".md", ".ipynb")), page
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= set(pages)


def test_the_examples_of_the_readme_run(monkeypatch, tmp_path):
    """With a tiny T5 of the same class in place of the one from the hub."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    base = make_t5(feed_forward_proj="gated-gelu", vocab_size=len(backbone.make_tokenizer()))
    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", lambda name: base)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: backbone.make_tokenizer())
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in examples:
        exec(example, names)
    assert type(names["model"]) is T5 and (tmp_path / "adapter" / "adapter.json").exists()
    assert (tmp_path / "lora" / "adapter_config.json").exists()
    assert examples[0].count("\n") <= 13
