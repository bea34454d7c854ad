"""What is installed: one package, which has its configurations, and whose command line works from any folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "scipy", "accelerate")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy by the setuptools that are here, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "main.py", "run_lib.py"):
        shutil.copy(ROOT / name, source)
    for name in ("sde_diffusion", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return zipfile.ZipFile(found)


def test_one_package_is_installed_with_all_its_files(wheel: zipfile.ZipFile) -> None:
    about, package = "sde_diffusion-0.1.0.dist-info", ROOT / "sde_diffusion"
    files = {name for name in wheel.namelist() if not name.startswith(about)}
    kept = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files == {
        *(str(path.relative_to(ROOT)) for path in kept),
        *(f"sde_diffusion/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")),
    }
    assert {"sde_diffusion/py.typed", "sde_diffusion/__init__.pyi"} <= files
    assert any(name.startswith("sde_diffusion/report/templates/") for name in files)
    assert wheel.read(f"{about}/top_level.txt").decode().split() == ["sde_diffusion"]
    assert b"sde-diffusion = sde_diffusion.__main__:cli" in wheel.read(f"{about}/entry_points.txt")


CONFIGURED = """
import json, runpy
from sde_diffusion.commands.configurations import config_names, config_path, name_bundled

name_bundled()
import configs

print(json.dumps([configs.__file__, config_names(), runpy.run_path(str(config_path("mine.py")))["found"]]))
"""


def test_the_configurations_are_found_from_any_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Of the installed package: by name, and by people's own files, in a folder that has a `configs` of its own."""
    site, here = tmp_path / "site", tmp_path / "here"
    wheel.extractall(site)
    (here / "configs").mkdir(parents=True)
    (here / "configs" / "__init__.py").write_text("raise AssertionError('not this one')")
    (here / "mine.py").write_text("from configs import variants\n\nfound = variants.__file__\n")
    env = {**os.environ, "PYTHONPATH": str(site)}
    ask = [sys.executable, "-c", CONFIGURED]
    done = subprocess.run(ask, capture_output=True, text=True, cwd=here, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    place, names, variants = json.loads(done.stdout)
    assert Path(place) == site / "sde_diffusion" / "configs" / "__init__.py"
    assert set(names) == {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "base", "variants"}
    assert Path(variants) == Path(place).with_name("variants.py")


def test_help_needs_neither_torch_nor_numpy(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    ask = "import runpy, sys\ntry:\n    runpy.run_module('sde_diffusion', run_name='__main__')\n"
    ask += f"finally:\n    assert not {{*{HEAVY}}} & {{*sys.modules}}"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ask, "--help"], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "--config vpsde_digits" in done.stdout and "--strength" in done.stdout and "--mode" in done.stdout
