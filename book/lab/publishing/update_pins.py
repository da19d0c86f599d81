"""Takes newer versions into requirements.txt; `make pins` then runs everything with them.

    python3.11 -m lab.publishing.update_pins        # from the folder `book`

The direct requirements, each the newest within the bound before its reason, are installed into a fresh
virtual environment, and what is there then is written down. pip needs a network for it, so it is no
part of the tests.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

FILE = Path(__file__).parents[3] / "requirements.txt"
OLDEST = (3, 11)  # what is installed there, newer ones install too
INDIRECT = "# What these need.\n"
DIRECT = re.compile(r"^([\w.-]+)==\S+ +# ((?:([<>!~=][^: ]*): )?.*)$", re.M)
CUDA = re.compile(r"nvidia|cuda|triton")  # comes with torch's builds for GPUs, where pip takes one


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(text: str) -> list[str]:
    """What to install: the direct requirements of a requirements.txt, each with its bound."""
    return [name + (bound or "") for name, _, bound in DIRECT.findall(text)]


def rewrite(text: str, installed: dict[str, str]) -> str:
    """The requirements.txt for an environment: its direct requirements keep their order and reasons.

    Args:
        text: the one that it replaces.
        installed: {package: version}.

    Raises:
        KeyError: a direct requirement is not installed.
    """
    versions = {normal(name): version.partition("+")[0] for name, version in installed.items()}
    direct, marker, _ = text.partition(INDIRECT)
    names = {normal(name) for name, *_ in DIRECT.findall(direct)} | {"pip", "minitensorpoly"}
    direct = DIRECT.sub(lambda line: f"{f'{line[1]}=={versions[normal(line[1])]}':<25}  # {line[2]}", direct)
    indirect = [name for name in installed if normal(name) not in names and not CUDA.match(normal(name))]
    pins = [f"{name}=={versions[normal(name)]}\n" for name in sorted(indirect, key=str.lower)]
    return direct + marker + "".join(pins)


def main():
    if sys.version_info[:2] != OLDEST:
        python = "python{}.{}".format(*OLDEST)
        raise SystemExit(f"pins are made on the oldest Python of the book: make pins PYTHON={python}")
    text = FILE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *wanted(text)], check=True)
        listed = json.loads(subprocess.check_output([*pip, "list", "--format=json"], text=True))
    FILE.write_text(rewrite(text, {package["name"]: package["version"] for package in listed}))


if __name__ == "__main__":
    main()
