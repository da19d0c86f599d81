"""Rehearses Colab: a notebook alone in an empty folder, on a machine that has what Colab brings and no more.

    python -m lab.publishing.rehearse_colab                       # from the folder `book`: chapter 9
    python -m lab.publishing.rehearse_colab 01_lora 11_use        # or others
    python3 -m lab.publishing.rehearse_colab --published ADDRESS   # in Colab's own image, what is published

It makes a fresh virtual environment with torch, transformers, datasets and matplotlib, in the versions of
requirements.txt, and a stand-in for `google.colab`. The notebook gets this repository's folder as the address
that it clones, as publishing gives it the public one; what is cloned is the last commit. Then the notebook is
executed from top to bottom. It takes some minutes, and pip needs a network: so it is no part of `make test`.

With an address, the machine is the one that this runs on, as it is, and the notebooks are those of the branch
`colab` of the repository at that address, as Colab opens them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from .notebook import write_cell

ROOT = Path(__file__).parents[3]

BROUGHT = ("torch", "transformers", "datasets", "matplotlib", "ipykernel")  # by Colab; it has many more


def make_machine(folder: Path) -> Path:
    """A virtual environment like Colab's, and a Jupyter kernel `colab` that runs in it.

    Returns:
        Its Python.
    """
    pins = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    brought = [pin for pin in pins if pin.partition("==")[0] in BROUGHT]
    assert len(brought) == len(BROUGHT)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *brought], check=True)
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    stand_in = Path(site.strip()) / "google" / "colab"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text('"""A stand-in for the module of Colab."""\n')
    kernel = folder / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
    return python


def versions(python: Path) -> dict[str, str]:
    """{package: version} in an environment."""
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=json"], text=True)
    return {package["name"]: package["version"] for package in json.loads(listed)}


def rehearse(path: Path, folder: Path, kernel: str) -> str:
    """Executes a notebook alone in a folder; an error in a cell is raised.

    Args:
        path: the notebook, with the address that it clones.
        folder: is made.
        kernel: name of the Jupyter kernel.

    Returns:
        What its first cell printed.
    """
    folder.mkdir()
    notebook = nbformat.read(shutil.copy(path, folder), as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1800, kernel_name=kernel, resources=where).execute()
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    return "".join(output.get("text", "") for output in first.outputs if output.get("name") == "stdout")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", default=["09_finetune", "12_own_tasks"], help="their names")
    parser.add_argument("--published", metavar="ADDRESS", help="of a repository that has the branch colab")
    options = parser.parse_args()
    for variable in ("PYTHONPATH", "VIRTUAL_ENV"):
        os.environ.pop(variable, None)
    with tempfile.TemporaryDirectory() as temporary:
        folder, copy = Path(temporary), Path(temporary) / "copy"
        if options.published:
            python, kernel = Path(sys.executable), "python3"
            command = ["git", "clone", "--quiet", "--depth=1", "--branch=colab", options.published, copy]
            subprocess.run(command, check=True)
        else:
            python, kernel = make_machine(folder), "colab"
            shutil.copytree(ROOT / "book", copy / "book", ignore=shutil.ignore_patterns("lab"))
            for path in (copy / "book").glob("*.ipynb"):
                write_cell(path, ROOT.as_uri())
        before = versions(python)
        for name in options.notebooks:
            said = rehearse(copy / "book" / f"{name}.ipynb", folder / name, kernel).strip()
            print(f"{name}: {said}")
            if not said.splitlines()[-1].startswith("minitensorpoly"):
                raise SystemExit(f"{name}: its first cell does not end with the check of the library")
        after = versions(python)
        changed = {p: (before[p], after.get(p)) for p in before if after.get(p) != before[p]}
        if changed:
            raise SystemExit(f"the notebook changed what the machine had: {changed}")
        print("installed:", *sorted(after.keys() - before.keys()))


if __name__ == "__main__":
    main()
