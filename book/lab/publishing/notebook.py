"""The first cell of every notebook, by which it runs in a clone and, alone, on a machine such as Colab's.

    python -m lab.publishing.notebook            # from the folder `book`: puts the cell into every notebook
    python -m lab.publishing.notebook ADDRESS    # and the address that a notebook alone clones the book from

The address is that of the repository that publishes the notebooks; in the sources there is none.

The cell runs where nothing is installed yet, and notebooks are stamped by a Python that has nothing else: so
nothing is imported here but Python's own modules, and a notebook is read as the JSON that it is.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

BOOK = Path(__file__).parents[2]
NEEDED = "safetensors transformers accelerate datasets pandas scipy matplotlib tqdm peft jsonschema".split()
CELL = """\
# @title Set up
import os
import subprocess
import sys

REPOSITORY = ""  # the book's address, filled in where it is published
if not os.path.exists("lab/publishing"):  # this notebook is alone, as on Colab
    if not REPOSITORY:
        advice = "open it in the folder `book` of a clone, or write an address above"
        raise ModuleNotFoundError(f"this notebook is not in its folder: {advice}")
    if not os.path.exists("minitensorpoly-book"):
        command = ["git", "clone", "--quiet", "--depth=1", REPOSITORY]
        subprocess.run([*command, "minitensorpoly-book"], check=True)
    os.chdir("minitensorpoly-book/book")
    sys.path.insert(0, os.getcwd())
from lab.publishing.notebook import ready

ready()"""

# Folded on Colab, in Jupyter and on the site.
METADATA = {
    "cellView": "form",
    "jupyter": {"source_hidden": True},
    "mystnb": {"code_prompt_hide": "Set up", "code_prompt_show": "Set up"},
    "tags": ["hide-input"],
}


def ready() -> None:
    """Makes the library importable and installs what is missing, but never torch; then checks the library.

    Raises:
        ModuleNotFoundError: torch is missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("torch is missing: install it as pytorch.org says for this machine")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print("installing", *missing)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
        importlib.invalidate_caches()
    if importlib.util.find_spec("minitensorpoly") is None:
        sys.path.insert(0, str(BOOK.parent))
    print(check_library())


def check_library() -> str:
    """Adapts a layer with every method, trains it for a step and merges a task; says so in one line."""
    import torch

    import minitensorpoly as mtp

    for method in mtp.METHODS:
        model = torch.nn.Sequential(torch.nn.Linear(16, 16))
        x = torch.randn(2, 16)
        before = model(x)
        mtp.adapt(model, mtp.AdapterConfig(method, "0", n_tasks=2, rank=2))
        if not torch.equal(model(x, task_ids=[0, 1]), before):
            raise RuntimeError(f"{method}: the adapted layer does not start as its base")
        model(x, task_ids=[0, 1]).square().sum().backward()
        torch.optim.SGD(mtp.parameter_groups(model, lr=0.1)).step()
        after = model(x, task_ids=[1, 1])
        torch.testing.assert_close(mtp.merge(model, task=1)(x), after, msg=f"{method}: merge changes it")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    library = f"minitensorpoly {mtp.__version__}: {len(mtp.METHODS)} methods work"
    return f"{library}; torch {torch.__version__}, {where}"


def write_cell(path: Path, address: str = "") -> bool:
    """Puts the cell into a notebook, as its first cell of code; leaves everything else as it is.

    Args:
        path: the notebook.
        address: of the repository, for `git clone`.

    Returns:
        Whether the notebook changed.

    Raises:
        ValueError: the notebook's first cell of code is another one.
    """
    notebook = json.loads(path.read_text())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    if not "".join(first["source"]).startswith(CELL.splitlines()[0]):
        raise ValueError(f"{path}: its first cell of code must begin with {CELL.splitlines()[0]!r}")
    source = CELL.replace('REPOSITORY = ""', f"REPOSITORY = {json.dumps(address)}").splitlines(keepends=True)
    changed = first["source"] != source
    first["source"] = source
    first["metadata"] |= METADATA
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return changed


def main():
    address = sys.argv[1] if len(sys.argv) > 1 else ""
    for path in sorted(BOOK.glob("*.ipynb")):
        if write_cell(path, address):
            print(path.name)


if __name__ == "__main__":
    main()
