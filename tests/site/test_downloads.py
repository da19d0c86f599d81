"""What a reader can take away from the website: every notebook, and the library as one file."""

import io
import re
import zipfile
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
BOOK = re.findall(r"\b(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text())
NOTEBOOKS = [page for page in BOOK if (ROOT / f"{page}.ipynb").exists()]
BUTTON = "a.btn-download-source-button"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_downloads_with_its_outputs(desk, origin, notebook):
    desk.goto(f"{origin}{notebook}.html")
    link = desk.locator(BUTTON)
    expect(link).to_be_hidden()
    desk.get_by_label("Download this page").click()
    expect(link).to_be_visible()
    answer = desk.request.get(link.evaluate("link => link.href"))
    assert answer.ok and answer.url.endswith(f"{Path(notebook).name}.ipynb")
    downloaded = nbformat.reads(answer.text(), as_version=4)
    nbformat.validate(downloaded)
    assert downloaded == nbformat.read(ROOT / f"{notebook}.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in downloaded.cells)


def test_the_project_downloads_as_a_file(desk, origin):
    desk.goto(f"{origin}book/intro.html")
    link = desk.get_by_role("link", name="the whole project as a zip")
    answer = desk.request.get(link.evaluate("link => link.href"))
    assert answer.ok
    with zipfile.ZipFile(io.BytesIO(answer.body())) as file:
        for name in ("Makefile", "README.md", "book/lab/real/__main__.py"):
            assert file.read(f"minitensorpoly-book/{name}") == (ROOT / name).read_bytes()


def test_the_library_downloads_as_a_file(desk, origin):
    answer = desk.request.get(f"{origin}_static/minitensorpoly.zip")
    assert answer.ok
    with zipfile.ZipFile(io.BytesIO(answer.body())) as file:
        for source in [*(ROOT / "minitensorpoly").glob("*.py"), ROOT / "LICENSE"]:
            assert file.read(f"minitensorpoly/{source.name}") == source.read_bytes()
