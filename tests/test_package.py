"""The library as a package: what `pip install .` installs, and that it needs nothing else."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import minitensorpoly

ROOT = Path(__file__).parent.parent
# Run where the library is installed; says which copy the tests had, and whether they could have had others.
ALONE = """
import importlib.util, sys, pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
print(sys.modules["minitensorpoly"].__file__)
print(*filter(importlib.util.find_spec, ["transformers", "peft", "datasets", "lab"]))
sys.exit(code)
"""


def link_packages(needs, folder):
    """Makes a folder that has what pip would install for some requirements, and no other package."""
    waiting, known = [Requirement(need) for need in needs], set()
    while waiting:
        need = waiting.pop()
        distribution = importlib.metadata.distribution(need.name)
        for extra in {"", *need.extras}:
            for further in map(Requirement, distribution.requires or []):
                wanted = not further.marker or further.marker.evaluate({"extra": extra})
                if wanted and str(further) not in known:
                    known.add(str(further))
                    waiting.append(further)
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(distribution.locate_file(name))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves files in the folder that it builds."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "minitensorpoly", source / "minitensorpoly")
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()  # a package that must stay out
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", target, source], check=True)
    (path,) = target.iterdir()
    return path


def metadata(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(file.read(name))


def test_the_wheel_has_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        information = f"minitensorpoly-{minitensorpoly.__version__}.dist-info"
        assert file.read(f"{information}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert sorted(names) == sorted(f"minitensorpoly/{p.name}" for p in (ROOT / "minitensorpoly").glob("*.py"))


def test_the_wheel_asks_for_torch_and_safetensors_alone(wheel):
    said = metadata(wheel)
    assert (said["Name"], said["Version"]) == ("minitensorpoly", minitensorpoly.__version__)
    needs = [Requirement(need).name for need in said.get_all("Requires-Dist")]
    assert sorted(needs) == ["safetensors", "torch"]
    assert said["License-Expression"] == "Apache-2.0" and said.get_all("License-File") == ["LICENSE"]


def test_the_installed_library_works_where_nothing_else_is_installed(wheel, tmp_path):
    """Its own tests, with the installed copy, on a Python that has what they need and no more."""
    installed, packages = tmp_path / "installed", tmp_path / "packages"
    packages.mkdir()
    link_packages([*metadata(wheel).get_all("Requires-Dist"), "pytest"], packages)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", installed, wheel], check=True)
    tests = [ROOT / "tests" / f"test_{name}.py" for name in ("library", "reference")]
    alone = subprocess.run(
        [sys.executable, "-S", "-c", ALONE, *tests],  # -S: without this environment's packages
        capture_output=True,
        text=True,
        cwd=installed,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        | {"PYTHONPATH": str(packages)},
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    *_, summary, place, others = alone.stdout.split("\n")[:-1]
    assert " passed" in summary and "skipped" not in summary
    assert Path(place) == installed / "minitensorpoly" / "__init__.py"
    assert others == ""
