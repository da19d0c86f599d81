"""A Sphinx extension: what the website has beyond what Jupyter Book makes.

The library is there as one file, `_static/minitensorpoly.zip`, and only notebooks have a button for Colab.
Cells that show something are shown without their assertions: those pin what the text says, for the tests.
"""

import ast
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def write_library(path: Path) -> None:
    """Packs the library with its licence; the same sources give the same bytes."""
    sources = [*sorted((ROOT / "minitensorpoly").glob("*.py")), ROOT / "LICENSE"]
    with zipfile.ZipFile(path, "w") as file:
        for source in sources:
            entry = zipfile.ZipInfo(f"minitensorpoly/{source.name}")  # without the file's date
            entry.external_attr = 0o644 << 16
            file.writestr(entry, source.read_bytes(), zipfile.ZIP_DEFLATED)


def add_library(app, exception):
    """When a website is built."""
    if exception is None and app.builder.format == "html":
        write_library(Path(app.outdir, "_static", "minitensorpoly.zip"))


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
    app.connect("build-finished", add_library)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
