"""What a repository publishes: its own address on pages and in notebooks, and the library as a file."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lab.publishing import notebook, publish, site

ROOT = Path(__file__).parent.parent
ADDRESS = "https://github.com/some-one/a.fork"
CONTENTS = """\
format: jb-book
root: book/intro
chapters:
- {file: book/01_lora}
- {file: book/A1_notation}
- {file: book/A2_differences}
- {file: book/references}
"""
PAGES = re.findall(r"book/(\w+)", CONTENTS)


def small_book(folder):
    """A book of some pages, with this book's configuration; nothing is executed."""
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copytree(ROOT / "minitensorpoly", folder / "minitensorpoly")
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("weights"))
    for path in (folder / "book").glob("*.ipynb"):
        if path.stem not in PAGES:
            path.unlink()
    config = (ROOT / "_config.yml").read_text()
    unexecuted = config.replace("execute_notebooks: cache", 'execute_notebooks: "off"')
    assert unexecuted != config
    (folder / "_config.yml").write_text(unexecuted)
    (folder / "_toc.yml").write_text(CONTENTS)
    return folder


def build(folder):
    """The pages of a website."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = small_book(tmp_path_factory.mktemp("published"))
    publish.stamp(folder, ADDRESS, "a-branch")
    return build(folder)


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory):
    return build(small_book(tmp_path_factory.mktemp("unpublished")))


@pytest.mark.parametrize("page", PAGES)
def test_a_published_notebook_opens_on_colab_and_no_other_page_does(published, page):
    links = re.findall(r'href="(https://colab[^"]*)"', (published / "book" / f"{page}.html").read_text())
    name = f"book/{page}.ipynb"
    expected = f"https://colab.research.google.com/github/some-one/a.fork/blob/a-branch/{name}"
    assert set(links) == ({expected} if (ROOT / name).exists() else set())


def test_a_published_page_leads_to_the_repository(published):
    for page in PAGES:
        assert f'href="{ADDRESS}"' in (published / "book" / f"{page}.html").read_text()


def test_a_published_page_says_what_it_is_where_it_is_linked(published):
    head = (published / "book" / "01_lora.html").read_text().partition("</head>")[0]
    tags = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', head))
    site = "https://some-one.github.io/a.fork/"
    assert tags["og:url"] == f"{site}book/01_lora.html" and "low-rank" in tags["og:title"]
    assert tags["description"] == tags["og:description"] and "How few numbers" in tags["description"]
    image = tags["og:image"].removeprefix(site)
    assert (published / image).exists() and tags["og:image:alt"].startswith("The matrix W")


def test_a_missing_page_leads_back_from_any_depth(published, unpublished):
    for folder, prefix in ((published, "/a.fork/"), (unpublished, "/")):
        text = (folder / "404.html").read_text()
        assert "No such page" in text and f'href="{prefix}book/01_lora.html"' in text
        local = re.findall(r'(?:href|src)="([^"#]*)', text)
        astray = [link for link in local if link and not link.startswith((prefix, "https://"))]
        assert not astray


def test_a_downloaded_notebook_has_the_address_in_its_first_cell_and_keeps_its_outputs(published):
    for path in (published / "_sources" / "book").glob("*.ipynb"):
        downloaded, source = (json.loads(p.read_text()) for p in (path, ROOT / "book" / path.name))
        cells = [cell for cell in downloaded["cells"] if cell["cell_type"] == "code"]
        assert f'REPOSITORY = "{ADDRESS}"' in "".join(cells[0]["source"])
        sources = [cell for cell in source["cells"] if cell["cell_type"] == "code"]
        assert cells[1:] == sources[1:] and cells[0]["outputs"] == sources[0]["outputs"]


def test_without_an_address_no_page_has_a_button_for_colab_or_a_repository(unpublished):
    for page in PAGES:
        text = (unpublished / "book" / f"{page}.html").read_text()
        assert "article-header-buttons" in text
        assert "colab.research" not in text and "source-repository-button" not in text
    for path in (unpublished / "_sources" / "book").glob("*.ipynb"):
        assert path.read_bytes() == (ROOT / "book" / path.name).read_bytes()


def test_the_website_has_the_library_as_a_file(unpublished, tmp_path):
    path = unpublished / "_static" / "minitensorpoly.zip"
    with zipfile.ZipFile(path) as file:
        assert {name.partition("/")[0] for name in file.namelist()} == {"minitensorpoly"}
        file.extractall(tmp_path)
    sources = {source.name for source in (ROOT / "minitensorpoly").glob("*.py")} | {"LICENSE"}
    assert {source.name for source in (tmp_path / "minitensorpoly").iterdir()} == sources
    assert (tmp_path / "minitensorpoly" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    program = "import minitensorpoly; print(minitensorpoly.__file__)"
    said = subprocess.check_output([sys.executable, "-c", program], cwd=tmp_path, text=True)
    assert Path(said.strip()) == tmp_path / "minitensorpoly" / "__init__.py"
    again = tmp_path / "again.zip"
    site.write_library(again)
    assert again.read_bytes() == path.read_bytes()


def test_the_website_has_the_project_as_a_file_in_which_its_commands_run(unpublished, tmp_path):
    site.write_project(tmp_path / "project.zip")
    for path in (tmp_path / "project.zip", unpublished / "_static" / "minitensorpoly-book.zip"):
        with zipfile.ZipFile(path) as file:
            names = {name.removeprefix("minitensorpoly-book/") for name in file.namelist()}
        assert not [name for name in names if re.search(r"_build|cache|\.venv|\.egg-info|\.git/", name)]
        assert names >= {"LICENSE", "book/lab/real/__main__.py", "minitensorpoly/__init__.py"}
    with zipfile.ZipFile(tmp_path / "project.zip") as file:
        file.extractall(tmp_path)
    folder = tmp_path / "minitensorpoly-book"
    assert (folder / "Makefile").exists() and (folder / "tests" / "test_publish.py").exists()
    command = [sys.executable, "-m", "lab.real", "check", "lab/real/example/tasks.json"]
    said = subprocess.check_output(command, cwd=folder / "book", text=True)
    assert "sentiment: 48 training rows, 12 validation rows" in said


def git(folder, *arguments):
    return subprocess.check_output(["git", *arguments], cwd=folder, text=True)


def test_the_stamped_copy_is_committed_on_a_branch_and_the_checkout_stays(tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a")
    root = small_book(tmp_path)
    shutil.copy(ROOT / ".gitignore", root)
    git(root, "init", "--quiet", "--initial-branch=trunk")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "a")
    for address in (ADDRESS, ADDRESS + "2"):  # a second time, over the first
        folder = publish.publish(root, address, "a-branch")
        assert git(root, "status", "--porcelain", "--branch") == "## trunk\n"
        assert git(folder, "status", "--porcelain", "--branch") == "## a-branch\n"
        assert git(root, "log", "--format=%s", "a-branch").splitlines() == [
            f"The notebooks with their address, {address}",
            "a",
        ]
        changed = git(root, "diff", "--name-only", "trunk", "a-branch").split()
        notebooks = [f"book/{page}.ipynb" for page in PAGES if (ROOT / f"book/{page}.ipynb").exists()]
        assert sorted(changed) == ["_config.yml", *notebooks]
        said = git(root, "show", f"a-branch:{notebooks[0]}")
        assert json.dumps(f'REPOSITORY = "{address}"')[1:-1] in said


@pytest.mark.parametrize(
    "address", ["", "https://gitlab.com/a/b", "https://github.com/a", "git@github.com:a/b.git"]
)
def test_an_address_from_which_colab_opens_nothing_is_refused(tmp_path, address):
    before = (ROOT / "_config.yml").read_text()
    (tmp_path / "_config.yml").write_text(before)
    with pytest.raises(ValueError, match="must read https://github.com/OWNER/NAME"):
        publish.stamp(tmp_path, address, "colab")
    assert (tmp_path / "_config.yml").read_text() == before


def test_a_copy_is_stamped_once(tmp_path):
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    publish.stamp(tmp_path, ADDRESS, "colab")
    with pytest.raises(ValueError, match="has an address already"):
        publish.stamp(tmp_path, ADDRESS, "colab")


def test_no_address_stands_in_the_sources():
    assert 'REPOSITORY = ""' in notebook.CELL
    assert not re.search("^(repository|launch_buttons):", (ROOT / "_config.yml").read_text(), re.M)
