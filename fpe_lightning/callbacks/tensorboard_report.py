"""What TensorBoard cannot do by itself: mark splits on the curves, and compare runs by what they ended with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.tensorboard.summary import hparams as hparams_summaries
from typing_extensions import override

from fpe_lightning.callbacks.tensorboard_columns import chosen_hparams, columns_of
from fpe_lightning.interference.curves import curves_figure

SITES = {
    "width": r"expansion/width/",
    "non-zeros": r"interference/.*/nonzeros$",
    "mean fan-in": r"interference/.*/mean_fan_in$",
    "feature capacity": r"interference/.*/feature_capacity$",
    "mean absolute cosine similarity": r"interference/.*/mean_absolute_cosine_similarity$",
}
"""Charts of the sites by title, and the tags that ``InterferenceMonitor`` logs for them."""
CLAUSES = {"clause collisions and coverage": r"interference/.*/clause_"}
"""One more, where the data know clauses."""


class TensorBoardReport(Callback):
    """Mark splits on the curves, arrange charts on the tab *Custom Scalars*, and fill the tab *HParams*.

    TensorBoard draws no vertical lines. So when training ends the tab *Images* gets a figure ``curves/<name>`` of what
    was logged after each epoch, with a dashed line at each split. While it goes on, a split at step ``s`` is a curve of
    its own, ``expansion/split/<name>``, that goes from 0 at ``s - 1`` up to the value that the curve beside it last had
    at ``s`` and back to 0 at ``s + 1``; *Custom Scalars* shows both in one chart, sharpest without smoothing.

    *HParams* gets a row for each run with the same columns, whatever was trained: network, alpha, moment of the split,
    partition, budget, optimizer, learning rate, epochs, seed and non-zero parameters; then the best value of what
    ``ModelCheckpoint`` watches, once training ends, and ``metrics``, as soon as they are logged.

    Give ``TensorBoardLogger`` the argument ``default_hp_metric=False``: of two tables TensorBoard keeps the first. Only
    TensorBoard loggers are written to, and no random number is drawn. It saves no state:
    the figure of a resumed run begins where that run did.

    Args:
        charts: Parts of names of metrics; each makes a chart of all metrics so named but those of the test.
        metrics: Names of metrics that *HParams* shows beside the best one; they are logged elsewhere.
        hparams: Names or globs of hyper-parameters of the module, nested ones joined by ``/`` as in
            ``"network/init_args/hidden"``, that *HParams* shows too. Their columns bear the last part of the name.
            TensorBoard takes the columns from one of the runs, so give the same ones in all that are to be compared.

    Raises:
        MisconfigurationException: If an argument is not a list of names, or when a fit is set up if a name in
            ``hparams`` matches no hyper-parameter.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from fpe_lightning.callbacks import TensorBoardReport
        >>> trainer = Trainer(callbacks=[TensorBoardReport()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        charts: Sequence[str] = ("loss", "accuracy"),
        metrics: Sequence[str] = ("test/loss", "test/accuracy"),
        hparams: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, value in (("charts", charts), ("metrics", metrics), ("hparams", hparams)):
            if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                raise MisconfigurationException(f"`{name}` has to be a list of names, found {value!r}.")
        self.charts, self.metrics, self.hparams = list(charts), list(metrics), list(hparams)
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._splits: list[int] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse names of hyper-parameters that match none."""
        if stage != "fit":
            return
        chosen_hparams(pl_module.hparams_initial, self.hparams)
        if any(isinstance(each, TensorBoardLogger) and each._default_hp_metric for each in trainer.loggers):
            rank_zero_warn(
                "TensorBoard keeps the first table of hyper-parameters that a run writes, and TensorBoardLogger writes "
                "one without metrics: give it `default_hp_metric=False` for that of `TensorBoardReport`."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._curves, self._splits = {}, []
        boards = _boards(trainer)
        if not boards:
            return
        columns = {**columns_of(trainer, pl_module), **chosen_hparams(pl_module.hparams_initial, self.hparams)}
        best = _best(trainer)
        metrics = [*([best[0]] if best else []), *self.metrics]
        experiment, start, _ = hparams_summaries(columns, dict.fromkeys(metrics, 0.0))
        for board in boards:
            board.add_custom_scalars(layout(self.charts, bool(getattr(_data(trainer), "groups", None))))
            for summary in (experiment, start):
                board.file_writer.add_summary(summary)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Modules may log an epoch's metrics after callbacks have seen its end.
        self._note(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        """Keep the metrics of the charts, for the figure."""
        for name, value in trainer.callback_metrics.items():
            if any(re.match(pattern(chart), name) for chart in self.charts):
                self._curves.setdefault(name, []).append((trainer.global_step, float(value)))

    def on_after_expansion(self, trainer: Trainer, pl_module: LightningModule, report: Any) -> None:
        """Mark the split on each chart.

        Args:
            trainer: The trainer.
            pl_module: The module.
            report: The expansion report.
        """
        # On every process: to look at a metric may mean to gather it.
        latest = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._splits.append(trainer.global_step)
        for board in _boards(trainer):
            for chart in self.charts:
                for step, value in marker(trainer.global_step, height(latest, chart)):
                    board.add_scalar(f"expansion/split/{chart}", value, step)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = _best(trainer)
        *_, end = hparams_summaries({}, {})
        for board in _boards(trainer):
            if best is not None and best[1] is not None:
                board.add_scalar(best[0], best[1], trainer.global_step)
            board.file_writer.add_summary(end)
            for chart in self.charts:
                curves = {name: points for name, points in self._curves.items() if re.match(pattern(chart), name)}
                if curves:
                    figure = curves_figure(curves, self._splits, chart)
                    board.add_figure(f"curves/{chart}", figure, trainer.global_step, close=False)


def pattern(chart: str) -> str:
    """What the metrics of a chart are found by: its name as a part of theirs, those of the test left out.

    Example:
        >>> [name for name in ("val/loss", "train_loss", "test/loss", "val/f1") if re.match(pattern("loss"), name)]
        ['val/loss', 'train_loss']
    """
    return rf"(?!test|best|expansion/).*{re.escape(chart)}"


def layout(charts: Sequence[str], clauses: bool = False) -> dict[str, dict[str, list[Any]]]:
    """The charts of the tab *Custom Scalars*: those of training with their splits, and those of the sites.

    Args:
        charts: See :class:`TensorBoardReport`.
        clauses: Whether clauses are known.

    Example:
        >>> layout(["loss"])["training"]["loss"]
        ['Multiline', ['(?!test|best|expansion/).*loss', 'expansion/split/loss$']]
    """
    training = {chart: ["Multiline", [pattern(chart), f"expansion/split/{re.escape(chart)}$"]] for chart in charts}
    sites = SITES | (CLAUSES if clauses else {})
    return {"training": training, "sites": {title: ["Multiline", [tags]] for title, tags in sites.items()}}


def marker(step: int, top: float) -> list[tuple[int, float]]:
    """Steps and values of a curve that stands for a vertical line; TensorBoard keeps one value a step.

    Example:
        >>> marker(12, 3.5)
        [(11, 0.0), (12, 3.5), (13, 0.0)]
    """
    return [(step - 1, 0.0), (step, top), (step + 1, 0.0)]


def height(latest: Mapping[str, float], chart: str) -> float:
    """How high the line of a split is: the largest of a chart's metrics, or 1 where none has a finite value yet.

    Example:
        >>> height({"train/loss": 2.0, "val/loss": 2.5, "test/loss": 9.0}, "loss"), height({}, "loss")
        (2.5, 1.0)
    """
    found = [value for name, value in latest.items() if re.match(pattern(chart), name) and math.isfinite(value)]
    return max(found, default=1.0)


def _data(trainer: Trainer) -> object:
    return getattr(trainer, "datamodule", None)


def _best(trainer: Trainer) -> tuple[str, float | None] | None:
    """Name and value of the best of what is watched; the value is None as long as there is none."""
    checkpoint = next((each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)), None)
    if checkpoint is None or checkpoint.monitor is None:
        return None
    score = checkpoint.best_model_score
    return f"best/{checkpoint.monitor}", None if score is None else float(score)


def _boards(trainer: Trainer) -> list[Any]:
    """The TensorBoard writers of the trainer, on the first process alone."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
