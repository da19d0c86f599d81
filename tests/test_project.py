"""What the project promises of itself."""

import ast
import inspect
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import minitensorpoly as mtp
import test_library
from common import T5, make_t5
from lab.english import backbone
from lab.publishing import execute

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
    assert sum(code_lines(file) for file in (ROOT / "minitensorpoly").glob("*.py")) <= 520


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


def test_the_method_that_contributing_adds_has_what_every_method_has(monkeypatch, tmp_path):
    """The page's own checks, then all of `test_library.py`; the row is taken out again."""
    before = dict(mtp.METHODS)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    try:
        for example in examples:
            exec(example, names)
        (added,) = mtp.METHODS.keys() - before
        assert added not in before and (tmp_path / "lora" / "adapter_config.json").exists()
        tests = [test for name, test in vars(test_library).items() if name.startswith("test_")]
        assert len(tests) >= 7
        for number, test in enumerate(tests):
            folder = tmp_path / str(number)
            arguments = {"method": added, "tmp_path": folder}
            test(**{name: arguments[name] for name in inspect.signature(test).parameters})
        config = mtp.AdapterConfig(added, "0", n_tasks=1, rank=8)
        layer = mtp.adapt(torch.nn.Sequential(torch.nn.Linear(4000, 8)), config)[0]
        assert layer.lora(task=0)[0].var().item() == pytest.approx(1 / (3 * 4000), rel=0.3)
    finally:
        mtp.METHODS.clear()
        mtp.METHODS.update(before)


def test_the_citation_is_of_this_version_and_of_the_paper_that_the_readme_cites():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mtp.__version__
    paper = citation["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    for said in (paper["title"], paper["journal"], str(paper["year"]), paper["url"]):
        assert f"{{{said}}}" in readme
    authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert f"{{{' and '.join(authors)}}}" in readme


def test_costs_are_recorded_of_every_notebook_and_of_no_other():
    assert json.loads(execute.COSTS.read_text()).keys() == {path.stem for path in NOTEBOOKS}


def test_workflows_call_targets_that_exist_and_name_major_versions():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    called = set()
    for path in workflows:
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        assert all("timeout-minutes" in job for job in jobs), path
        for step in (step for job in jobs for step in job["steps"]):
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1")), step
            called |= set(re.findall(r"\bmake ([a-z-]+)", step.get("run", "")))
    assert called <= targets and {"test", "test-library", "book", "test-site", "publish"} <= called
