"""A Sphinx extension: what the website has beyond what Jupyter Book makes.

The library is there as one file, `_static/minitensorpoly.zip`, the whole project as another,
`_static/minitensorpoly-book.zip`, and only notebooks have a button for Colab.
Cells that show something are shown without their assertions: those pin what the text says, for the tests.
"""

import ast
import re
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def write_library(path: Path) -> None:
    """Packs the library with its licence; the same sources give the same bytes."""
    sources = [*sorted((ROOT / "minitensorpoly").glob("*.py")), ROOT / "LICENSE"]
    _pack(path, {f"minitensorpoly/{source.name}": source for source in sources})


def write_project(path: Path) -> None:
    """Packs library, book and tests: what git keeps of them, or without git all that is not built."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    if not names:
        built = re.compile(r"\.(?!github|gitignore).*|_build|build|__pycache__|.*\.egg-info")
        found = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())
        names = [str(name) for name in found if not any(map(built.fullmatch, name.parts))]
    _pack(path, {f"minitensorpoly-book/{name}": ROOT / name for name in sorted(names)})


def _pack(path, sources):
    with zipfile.ZipFile(path, "w") as file:
        for name, source in sources.items():
            entry = zipfile.ZipInfo(name)  # without the file's date
            entry.external_attr = 0o644 << 16
            file.writestr(entry, source.read_bytes(), zipfile.ZIP_DEFLATED)


def add_files(app, exception):
    """When a website is built."""
    if exception is None and app.builder.format == "html":
        write_library(Path(app.outdir, "_static", "minitensorpoly.zip"))
        write_project(Path(app.outdir, "_static", "minitensorpoly-book.zip"))


def keep_colab_for_notebooks(app, pagename, *_):
    """Before the theme makes its buttons: it takes any page with a kernel for one that Colab can open."""
    if not str(app.env.doc2path(pagename)).endswith(".ipynb"):
        app.env.metadata[pagename].pop("kernelspec", None)


def without_assertions(code: str) -> str:
    """Python code without its assert statements, and without blocks that hold nothing else.

    >>> print(without_assertions("x = 1\\nassert x\\nfor y in x:\\n    assert y\\nx"))
    x = 1
    x
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a cell with a magic
        return code
    dropped, _ = _assertions(tree.body)
    return "\n".join(line for i, line in enumerate(code.splitlines(), 1) if i not in dropped).strip("\n")


def _assertions(statements):
    """Numbers of the lines that go, and whether nothing is left."""
    dropped, left = set(), len(statements)
    for statement in statements:
        bodies = [getattr(statement, name, []) for name in ("body", "orelse", "handlers", "finalbody")]
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):  # it is called later
            continue
        inner = [_assertions(body) for body in bodies if body]
        if isinstance(statement, ast.Assert) or (inner and all(empty for _, empty in inner)):
            dropped |= {*range(statement.lineno, statement.end_lineno + 1)}
            left -= 1
        else:
            dropped |= set().union(*(lines for lines, empty in inner if not empty))
    return dropped, not left


def hide_assertions(app, doctree):
    """In every cell of a notebook that has an output."""
    for cell in doctree.findall(lambda node: node.tagname == "container"):
        if cell.get("nb_element") != "cell_code" or len(cell.children) < 2:
            continue
        for block in cell.children[0].findall(lambda node: node.tagname == "literal_block"):
            shown = without_assertions(block.astext())
            block.children, block.rawsource = [type(block.children[0])(shown)], shown


def setup(app):
    app.connect("doctree-read", hide_assertions)
    app.connect("html-page-context", keep_colab_for_notebooks)
    app.connect("build-finished", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
