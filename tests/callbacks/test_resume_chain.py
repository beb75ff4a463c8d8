"""A run that is resumed again and again ends as the uninterrupted one, at whichever steps it stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from boring import Plain, data, equal, outcome, resumable, trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data.arrays import ArrayDataModule

STEPS = 3
"""Steps of an epoch."""
TWO_EPOCHS = range(1, 2 * STEPS + 1)
FEW = [(3, 4, 6), (3, 5, 7), (1, 3, 5), (3, 6, 7), (2, 3, 6), (3, 4, 5), (6, 7, 8), (3, 6, 9)]


class Arrays(ArrayDataModule):
    """A DataModule of this package."""

    def setup(self, stage: str | None = None) -> None:
        self.arrays = {"train": data().tensors, "val": data(seed=1).tensors}


def resume_chain(root: Path, chain: tuple[int, ...], split: bool, module: bool, **saving: Any) -> dict[str, Any]:
    """Resume at each step of a chain, from the checkpoint that the run before it wrote; the last run ends."""
    path = None
    for start in range(len(chain) + 1):
        folder = root / "-".join(map(str, (split, module, *chain[:start])))
        done = folder / "done"
        if not done.exists() or start == len(chain):
            callbacks: list[Callback] = [ExpansionCallback(alpha=2, epoch=2)] if split else []
            if start < len(chain):
                callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, **saving))
            run = trainer(
                *callbacks, max_epochs=4, limit_val_batches=1, directory=folder if start < len(chain) else None
            )
            batches: Any = Arrays(batch_size=8) if module else resumable(8)
            run.fit(Plain(), batches, ckpt_path=path)
            assert run.global_step == 4 * STEPS
            assert run.current_epoch == 4
            result = outcome(run)
            if start < len(chain):
                done.touch()
        if start < len(chain):
            path = folder / f"step={chain[start]}.ckpt"
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chains")


@pytest.mark.parametrize("chain", FEW, ids=str)
def test_resumed_three_times(root: Path, chain: tuple[int, ...]) -> None:
    expected = resume_chain(root, (), split=True, module=True)
    assert equal(resume_chain(root, chain, split=True, module=True, every_n_train_steps=1), expected)


@pytest.mark.parametrize(("split", "module"), [(True, False), (False, True)])
def test_a_callback_or_a_datamodule_suffices(root: Path, split: bool, module: bool) -> None:
    expected = resume_chain(root, (), split=split, module=module)
    assert equal(resume_chain(root, (3, 5, 7), split=split, module=module, every_n_train_steps=1), expected)


@pytest.mark.slow
@pytest.mark.parametrize("first", TWO_EPOCHS)
def test_resumed_three_times_at_every_step_of_two_epochs(root: Path, first: int) -> None:
    expected = resume_chain(root, (), split=True, module=True)
    for rest in itertools.combinations(range(first + 1, 2 * STEPS + 1), 2):
        chain = (first, *rest)
        assert equal(resume_chain(root, chain, split=True, module=True, every_n_train_steps=1), expected), chain


@pytest.mark.parametrize("saving", [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}])
@pytest.mark.parametrize("chain", [(3, 6, 9), (6, 9), (3,)], ids=str)
def test_checkpoints_at_the_end_of_epochs(tmp_path: Path, chain: tuple[int, ...], saving: dict[str, Any]) -> None:
    expected = resume_chain(tmp_path, (), split=True, module=True)
    assert equal(resume_chain(tmp_path, chain, split=True, module=True, every_n_epochs=1, **saving), expected)
