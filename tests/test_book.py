"""What every chapter promises its reader."""

import ast
import dataclasses
import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest

import minitensorpoly as mtp
from lab.publishing import execute

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem[0].isdigit()]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def section(text, title):
    """The text below a heading of level 2."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {title}"
    return found[1]


@each_notebook
def test_notebook_is_executed_in_order_without_errors(path):
    nbformat.validate(read(path))
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if "image/svg+xml" in o.get("data", {})]  # they differ at every run
    assert any("assert" in cell.source for cell in cells)


@each_notebook
def test_pictures_have_alternative_texts_and_code_fits_the_page(path):
    for cell in code_cells(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 30  # what a blind reader hears
        assert cell.source.count("\n") < 25, cell.source
        assert all(len(line) <= 88 for line in cell.source.splitlines()), cell.source


@each_notebook
def test_notebook_needs_nothing_that_shows_raw_elsewhere(path):
    assert not re.search(r"^(```\{|:::)|\{(ref|cite|eq|numref)[:a-z]*\}`", prose(path), re.M)


@each_chapter
def test_chapter_opens_with_question_needs_and_cost(path):
    opening = read(path).cells[0].source
    assert re.match(r"# \w.*\n\n\*\*The question\.\*\* .*\?", opening)
    assert "**What you need.** " in opening
    cost = json.loads(execute.COSTS.read_text())[path.stem]
    assert execute.cost_line(cost) in opening, "execute the chapter with python -m lab.publishing.execute"
    assert cost["seconds"] <= (300 if path.stem == "08_experiment" else 180)


@each_chapter
def test_chapter_has_a_picture_and_closes_with_summary_and_references(path):
    text = prose(path)
    titles = re.findall(r"^## (.*)", text, re.M)
    assert titles[-3:] == ["Exercises", "Summary", "References"]
    assert any("image/png" in o.get("data", {}) for cell in code_cells(path) for o in cell.outputs)
    sentences = re.findall(r"[.?!](?=\s|$)", without_markup(section(text, "Summary")))
    assert 3 <= len(sentences) <= 6, len(sentences)
    assert re.search(r"\[1\] .*\(https://", section(text, "References"), re.S)


@each_chapter
def test_every_exercise_has_a_difficulty_and_a_solution_that_is_executed(path):
    exercises = re.findall(
        r"^\*\*Exercise ([\d.]+)\*\* \*\((.*?)\)\*", section(prose(path), "Exercises"), re.M
    )
    chapter = int(path.stem[:2])
    assert [number for number, _ in exercises] == [f"{chapter}.{i + 1}" for i in range(len(exercises))]
    assert len(exercises) >= 4
    levels = ("one line", "a few lines", "a small investigation", "an investigation")
    assert {level for _, level in exercises} <= set(levels)
    solutions = [cell for cell in code_cells(path) if "hide-cell" in cell.metadata.get("tags", [])]
    assert [cell.source.splitlines()[0] for cell in solutions] == [
        f"# @title Solution {number}" for number, _ in exercises
    ]
    for cell in solutions:
        assert "assert" in cell.source or cell.outputs, cell.source


EQUATION = re.compile(
    r"\\tag\{([\d.]+)\}\n\$\$\n\n"
    r"\*Equation ([\d.]+): ((?:`[\w.]+`,? ?)+) ?checked by ((?:`[\w./:]+`(?:, )?)+)\.\*"
)


@each_chapter
def test_every_equation_names_the_function_and_the_test_that_hold_it(path):
    text = prose(path)
    chapter = int(path.stem[:2])
    tags = re.findall(r"\\tag\{([\d.]+)\}", text)
    assert tags == [f"{chapter}.{i + 1}" for i in range(len(tags))]
    for formula in re.findall(r"\$\$(.*?)\$\$", text, re.S):  # the site splits lines, where no tag is allowed
        assert not ("\\tag" in formula and "\\\\" in formula), formula
    named = EQUATION.findall(text)
    assert [tag for tag, *_ in named] == tags
    for tag, label, functions, tests in named:
        assert tag == label
        for name in re.findall(r"`([\w.]+)`", functions):
            find(name)
        for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", tests):
            defined = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(n, "name")}
            assert test in defined, (file, test)


def find(name):
    """The object of a dotted name such as package.module.Class.method."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def without_markup(text):
    """Prose alone: no code, formulas, headings, links' targets, list numbers or names of chapters."""
    text = re.sub(r"<details>.*?</details>|```.*?```|\$\$.*?\$\$", " ", text, flags=re.S)
    text = re.sub(r"\[\[\d+\]\]\(.*?\)|`[^`]*`|\$[^$]*\$", " ", text)
    text = re.sub(r"^(#+ .*|\*Equation .*|\*\*What it costs\.\*\* .*|\d+\. )", " ", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)", "] ", text)
    return re.sub(
        r"\b([Cc]hapters?|[Ee]quations?|[Ee]xercises?) \d+(\.\d+)?((, | and | to )\d+(\.\d+)?)*", " ", text
    )


def numbers(text):
    found = re.findall(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\d\w])", text)
    return {float(number.replace(",", "")) for number in found}


def asserted_numbers(cells):
    """Numbers in `assert` statements, and in outputs that are compared exactly at every run."""
    found = set()
    for cell in cells:
        for statement in ast.walk(ast.parse(cell.source)):
            if isinstance(statement, ast.Assert):
                found |= {
                    float(node.value)
                    for node in ast.walk(statement)
                    if isinstance(node, ast.Constant) and type(node.value) in (int, float)
                }
        if "nbval-check-output" in cell.metadata.get("tags", []):
            for output in cell.outputs:
                found |= numbers(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return found | {100 * number for number in found}


@each_notebook
def test_every_number_in_the_prose_is_asserted(path):
    text = prose(path)
    text = re.sub(r"^## (Exercises|References)\n.*?(?=^## |\Z)", "", text, flags=re.M | re.S)
    asserted = asserted_numbers(code_cells(path))
    missing = {n for n in numbers(without_markup(text)) if not any(abs(n - a) < 1e-9 for a in asserted)}
    assert not missing, sorted(missing)


def test_numbers_are_found_where_they_are_prose():
    text = "In chapter 8, T5 and `x = 3` reach 97.5 % of 1,024 rows, $q = 4$ [[1]](references.md), 32-shot."
    assert numbers(without_markup(text)) == {97.5, 1024.0, 32.0}


def test_the_notation_names_the_defaults_of_a_configuration():
    text = (ROOT / "book" / "A1_notation.md").read_text()
    table = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    column = next(row.index("default") for row in table if "default" in row)
    named = {row[1]: row[column] for row in table if len(row) > column and row[column]}
    named |= dict(re.findall(r"`(dropout|normalize)`,.*? `?(0\.0|False)", text, re.S))
    fields = {field.name: field.default for field in dataclasses.fields(mtp.AdapterConfig)}
    wanted = {name: str(default) for name, default in fields.items() if default is not dataclasses.MISSING}
    assert {name: named.get(name) for name in wanted} == wanted
