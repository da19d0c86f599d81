"""A Sphinx extension: what the website has beyond what Jupyter Book makes.

The library is there as one file, `_static/minitensorpoly.zip`, and only notebooks have a button for Colab.
"""

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


def setup(app):
    app.connect("html-page-context", keep_colab_for_notebooks)
    app.connect("build-finished", add_library)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
