"""A program that cannot be changed loads expanded checkpoints when it is run by us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import fpe_lightning as fpe
from tests.support.nets import mlp

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, torch
from torch import nn
from helper import build
if __name__ == "__main__":
    model = build()
    model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
    print(sys.argv[0].endswith("eval.py"), sys.argv[1:], model[0].out_features)
"""
HELPER = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
"""


def run(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fpe_lightning.checkpoints.run", *args]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_files_and_modules(tmp_path: Path) -> None:
    wide = mlp(64, 8, 3)
    fpe.expand(wide, fpe.Paper(alpha=2), example_inputs=torch.randn(1, 64))
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "eval.py").write_text(PROGRAM)
    (tmp_path / "code" / "helper.py").write_text(HELPER)
    expected = f"True ['{tmp_path}/wide.pt', '--more'] 16\n"
    for args, folder in ((["code/eval.py"], tmp_path), (["-m", "eval"], tmp_path / "code")):
        done = run(*args, f"{tmp_path}/wide.pt", "--more", folder=folder)
        assert done.stdout == expected, done.stderr
    missing = run("none.py", folder=tmp_path)
    assert missing.stderr == "There is no file none.py to run; name a module after `-m`.\n"
