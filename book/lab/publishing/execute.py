"""Executes chapters in place, so that their outputs can be committed, and records what they cost.

    python -m lab.publishing.execute                      # from the folder `book`: every chapter
    python -m lab.publishing.execute 02_tensor_products   # or some

Minutes and memory go to results/chapters.json and into the chapter's first cell.
"""

import argparse
import datetime
import json
import os
import re
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from ..records import BOOK, RESULTS

COSTS = RESULTS / "chapters.json"
COST_LINE = re.compile(r"^\*\*What it costs\.\*\* .*$", re.M)
VERSIONS = ("torch", "transformers", "datasets", "peft")
OWN_FOLDER = re.compile(re.escape(tempfile.gettempdir()) + r"/tmp\w+")  # of a run, another each time


def cost_line(cost: dict) -> str:
    """What a chapter's first cell says about its cost."""
    seconds = cost["seconds"]
    duration = (
        f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{max(10, round(seconds, -1)):.0f} seconds"
    )
    gigabytes = f"{cost['gigabytes']:.1f} GB of memory"
    return f"**What it costs.** About {duration} on {cost['cores']} cores, and {gigabytes}."


def execute(path: Path) -> dict:
    """Executes a notebook in place, in a fresh kernel, and writes its cost into its first cell.

    Returns:
        Seconds, gigabytes at the peak (the kernel and its children together), cores, date, versions.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=1800, resources=where, coalesce_streams=True)
    peak, done, start = [0], threading.Event(), time.perf_counter()

    def watch():
        while not done.wait(0.5):
            if client.km is not None and client.km.has_kernel:
                peak[0] = max(peak[0], _resident_bytes(client.km.provisioner.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client.execute()
    finally:
        done.set()
        watcher.join()
    cost = {
        "seconds": round(time.perf_counter() - start, 1),
        "gigabytes": round(peak[0] / 1e9, 2),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, different at every run
        if cell.cell_type == "code":  # progress bars
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output.text = OWN_FOLDER.sub("...", output.text)
    notebook.metadata["language_info"] = {"name": "python"}
    first = notebook.cells[0]
    first.source = COST_LINE.sub(cost_line(cost), first.source)
    nbformat.write(notebook, path)
    return cost


def _resident_bytes(pid):
    try:
        process = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help="names of notebooks (default: all)")
    chapters = parser.parse_args().chapters or [path.stem for path in sorted(BOOK.glob("*.ipynb"))]
    for chapter in chapters:
        cost = execute(BOOK / f"{chapter}.ipynb")
        costs = json.loads(COSTS.read_text()) if COSTS.exists() else {}
        costs[chapter] = cost
        COSTS.write_text(json.dumps(dict(sorted(costs.items())), indent=2) + "\n")
        print(f"{chapter}: {cost['seconds']:.0f} s, {cost['gigabytes']:.1f} GB")


if __name__ == "__main__":
    main()
