"""Dense, wide-sparse and FPE probes on the embedded default data at equal non-zeros, over several seeds.

``python -m benchmarks.clip_probe`` trains every arm by its shipped config, with the same code as
``python train.py fit``, and prints one table of means and standard errors. The configs set the learning rate, the
moment of the split and the pruning rule. These were chosen on validation data, with one rate for all arms, the best of
the dense probe. Test accuracy is measured at the epoch with the best validation accuracy.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fpe_lightning import count_nonzeros
from fpe_lightning.callbacks import CompareWithParent, ExpansionCallback, InterferenceMonitor, RunSummary
from fpe_lightning.cli import CLI
from fpe_lightning.expansion import BaseExpansion


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    label: str
    config: str
    alpha: int | None = None


ARMS = (
    Arm("dense", "clip_probe_dense"),
    Arm("wide-sparse", "clip_probe_wide_sparse", 2),
    Arm("wide-sparse", "clip_probe_wide_sparse", 4),
    Arm("FPE", "clip_probe", 2),
    Arm("FPE", "clip_probe", 4),
)
SHOWN = (CompareWithParent, ProgressBar, ModelSummary, RunSummary, InterferenceMonitor)


def run(arm: Arm, width: int, seed: int, folder: str, extra: Sequence[str] = ()) -> tuple[float, int]:
    """Train and test one probe.

    Args:
        arm: The arm to train.
        width: Hidden width of the dense parent.
        seed: Seed of weights, order, masks and partition.
        folder: Directory of checkpoints.
        extra: More words of the command line.

    Returns:
        Test accuracy in [0, 1], and the number of non-zero parameters at the end.
    """
    words = ["--config", f"configs/{arm.config}.yaml", f"--seed_everything={seed}", "--trainer.logger=false"]
    words += [f"--model.init_args.network.init_args.hidden={width}", f"--trainer.default_root_dir={folder}"]
    if arm.config == "clip_probe_wide_sparse":
        words.append(f"--model.init_args.network.init_args.alpha={arm.alpha}")
    if arm.config == "clip_probe":
        words.append("--trainer.callbacks.epoch=1")  # the best moment on validation data; the config splits later
    cli = CLI([*words, *extra], run=False)
    trainer = cli.trainer
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, SHOWN)]  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExpansionCallback) and arm.alpha:
            assert isinstance(callback.expansion, BaseExpansion)
            callback.expansion = replace(callback.expansion, alpha=arm.alpha)
        if isinstance(callback, Checkpoint):
            callback.dirpath = f"{folder}/{arm.config}-{arm.alpha}-{width}-{seed}"  # type: ignore[attr-defined]
    trainer.fit(cli.model, datamodule=cli.datamodule)
    trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path="best", verbose=False)
    return float(trainer.callback_metrics["test/accuracy"]), count_nonzeros(cli.model)


def mean_and_error(values: np.ndarray) -> str:
    """Mean and standard error in percent; no error for a single value."""
    if len(values) == 1:
        return f"{100 * values.mean():.1f}"
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32], help="hidden widths of the dense probe")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each cell")
    arguments, extra = parser.parse_known_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table = Table(title=f"Test accuracy in percent, seeds 0 to {arguments.seeds - 1}, mean ± standard error")
    for column in ("width", "arm", "alpha", "non-zeros", "accuracy", "over dense, paired", "over wide-sparse, paired"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    cells = [(width, arm, seed) for width in arguments.widths for arm in ARMS for seed in range(arguments.seeds)]
    found: dict[tuple[int, Arm], list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for width, arm, seed in track(cells, "Training probes"):
            found.setdefault((width, arm), []).append(run(arm, width, seed, folder, extra))
    for (width, arm), results in found.items():
        accuracy = np.array([result[0] for result in results])
        dense = np.array([result[0] for result in found[width, ARMS[0]]])
        wide = next((a for a in ARMS if a.label == "wide-sparse" and a.alpha == arm.alpha), None)
        rival = np.array([result[0] for result in found[width, wide]]) if wide and arm.label == "FPE" else None
        (nonzeros,) = {result[1] for result in results}
        gain = "" if arm == ARMS[0] else mean_and_error(accuracy - dense)
        over = "" if rival is None else mean_and_error(accuracy - rival)
        table.add_row(
            str(width), arm.label, str(arm.alpha or ""), f"{nonzeros:,}", mean_and_error(accuracy), gain, over
        )
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    main()
