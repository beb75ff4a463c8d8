"""The core alone: the callback splits in a run, and each missing extra is one sentence that names it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.core_venv import core, create

PROGRAM = """
import json, sys, time
start = time.process_time()
import lightning as L
lightning = time.process_time() - start
import torch
from torch import nn
import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, InterferenceMonitor
seconds = time.process_time() - start

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

model = Module()
before = fpe.count_nonzeros(model)
data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(2, (32,)))
L.Trainer(
    max_epochs=2, callbacks=[ExpansionCallback(alpha=2, epoch=1), InterferenceMonitor()], logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
).fit(model, torch.utils.data.DataLoader(data, batch_size=8))

def refused(action):
    try:
        action()
    except ModuleNotFoundError as error:
        return str(error)

def run(code):
    return lambda: exec(code, {})

def feature():
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    fpe.expand(net, fpe.Paper(partition="feature"), example_inputs=torch.randn(1, 8))

print(json.dumps({
    "width": model.net[0].out_features,
    "counts": [before, fpe.count_nonzeros(model)],
    "seconds": [lightning, seconds],
    "refused": {
        "data": refused(run("import fpe_lightning.data")),
        "cli": refused(run("import fpe_lightning.cli")),
        "summary": refused(run("from fpe_lightning.callbacks import RunSummary; RunSummary()")),
        "compare": refused(run("from fpe_lightning.callbacks import CompareWithParent; CompareWithParent()")),
        "board": refused(run("from fpe_lightning.callbacks import TensorBoardReport; TensorBoardReport()")),
        "figures": refused(run("import fpe_lightning.interference.figures")),
        "feature": refused(feature),
    },
}))
"""


@pytest.mark.slow
def test_a_split_in_a_run_and_a_sentence_for_each_missing_extra(tmp_path: Path) -> None:
    python = create(tmp_path / "venv")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["width"] == 8
    assert found["counts"] == [46, 46]
    lightning, all_ = found["seconds"]
    print(f"CPU seconds of imports: {lightning:.1f} for Lightning, {all_ - lightning:.1f} more for fpe_lightning")
    assert all(
        sentence.endswith('which is not installed: pip install "fpe_lightning[template]"')
        for sentence in found["refused"].values()
    ), found["refused"]


def test_the_core_needs_no_library_of_pictures_tables_or_the_command_line() -> None:
    heavy = {"jsonargparse", "matplotlib", "omegaconf", "open-clip-torch", "scipy", "tensorboard", "torchvision"}
    assert not heavy & set(core())
    assert "lightning" in core()
