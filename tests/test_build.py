"""The wheel and the sdist hold what their users need, and work outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fpe_lightning

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def run(folder: Path, *words: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_version_stands_in_one_place(artefacts: tuple[Path, Path]) -> None:
    assert all(f"fpe_lightning-{fpe_lightning.__version__}" in path.name for path in artefacts)


def test_the_wheel_holds_types_configs_and_the_encoder_and_nothing_of_the_owner(artefacts: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(artefacts[0]).namelist()
    for path in ("py.typed", "configs/clip_probe.yaml", "assets/glyph_clip/open_clip_model.safetensors"):
        assert f"fpe_lightning/{path}" in names
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"fpe_lightning/{path}" for path in shipped} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fpe_lightning"}


def test_the_wheel_splits_a_model_outside_of_the_repository(artefacts: tuple[Path, Path], tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(artefacts[0]).extractall(installed)
    code = "import fpe_lightning, fpe_lightning.callbacks; print(fpe_lightning.__file__)"
    (tmp_path / "program.py").write_text(code)
    found = run(tmp_path, "program", path=installed)
    assert found.strip() == str(installed / "fpe_lightning/__init__.py")


def test_the_tests_of_the_sdist_run(artefacts: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(artefacts[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for part in ("tests", "docs", "configs", "studies", "callbacks", "benchmarks", "train.py", "CHANGELOG.md"):
        assert (folder / part).exists()
    run(folder, "pytest", "-q", "--collect-only", path=folder)  # every test of the repository is there to be run
    run(folder, "pytest", "-q", "tests/test_rooms.py", "tests/partitions", "fpe_lightning/partitions", path=folder)
