"""Records of runs: where they come from, and reading them."""

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

BOOK = Path(__file__).parents[1]
RESULTS = BOOK / "results"


def provenance(module: str, device: str = "cpu") -> dict:
    """Where, when, by which module's command and with what a result was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=BOOK
    )
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    where = f"CPU, {cpu}, {os.cpu_count()} cores"
    if device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
        where = (
            f"{torch.cuda.get_device_name(device)}, driver {driver[0]}, CUDA {torch.version.cuda}, {where}"
        )
    return {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "device": where,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "datasets")},
    }


def read(path: str | Path, module: str) -> dict:
    """A file that a module's command wrote.

    Raises:
        FileNotFoundError: nothing has been recorded there; the message says how to.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: not measured yet; run `python -m {module}`")
    return json.loads(path.read_text())


def read_if_measured(path: str | Path) -> dict | None:
    """A file that a module's command wrote; None, and a line that says so, where there is none."""
    path = Path(path)
    if path.exists():
        return json.loads(path.read_text())
    print(f"{path.name}: not measured yet")
    return None
