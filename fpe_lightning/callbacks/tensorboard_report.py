"""Mark splits on TensorBoard's curves, arrange its charts, and compare runs by their final metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from fpe_lightning.callbacks.lightnings import Callback, MisconfigurationException, instances
from fpe_lightning.callbacks.tensorboard_hparams import chosen_hparams, columns_of
from fpe_lightning.extras import require

SITES = {
    "width": r"expansion/width/",
    "non-zeros": r"interference/.*/nonzeros$",
    "mean fan-in": r"interference/.*/mean_fan_in$",
    "feature capacity": r"interference/.*/feature_capacity$",
    "mean absolute cosine similarity": r"interference/.*/mean_absolute_cosine_similarity$",
}
"""Charts of the sites by title, with the tags that ``InterferenceMonitor`` logs."""
CLAUSES = {"clause collisions and coverage": r"interference/.*/clause_"}
"""One more chart, for data that know clauses."""


class TensorBoardReport(Callback):
    """Mark splits on the curves, arrange charts on the tab *Custom Scalars*, and fill the tab *HParams*.

    TensorBoard draws no vertical lines. At the end of training, the tab *Images* therefore gets a figure
    ``curves/<name>`` of the metrics after each epoch, with a dashed line at each split. During training, a split at
    step ``s`` is a curve of its own, ``expansion/split/<name>``. It is 0 at ``s - 1``, reaches the last value of the
    metric at ``s``, and is 0 again at ``s + 1``. *Custom Scalars* shows both curves in one chart; switch smoothing off.

    *HParams* gets one row per run, with the same columns for all kinds of runs: network, alpha, moment of the split,
    partition, pruning, optimizer, learning rate, epochs, seed and non-zero parameters. The best value of the metric
    that ``ModelCheckpoint`` monitors follows when training ends, and ``metrics`` as soon as they are logged.

    Give ``TensorBoardLogger`` the argument ``default_hp_metric=False``, because TensorBoard keeps the first of two
    tables. The callback writes to TensorBoard loggers only and draws no random number. It saves no state: the figure of
    a resumed run starts at the resumption.

    Args:
        charts: Parts of metric names. Each part makes one chart of all metrics that contain it, except test metrics.
        metrics: Names of metrics that *HParams* shows next to the best one; other code logs them.
        hparams: Names or globs of hyper-parameters of the module that *HParams* shows too. Join nested names by ``/``
            as in ``"network/init_args/hidden"``; the last part names the column. TensorBoard takes the columns from one
            of the runs, so give the same names in all runs that you compare.

    Raises:
        MisconfigurationException: If an argument is not a list of names, or, at the setup of a fit, if a name in
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
        require("template", "`TensorBoardReport`", "matplotlib", "tensorboard")
        super().__init__()
        for name, value in (("charts", charts), ("metrics", metrics), ("hparams", hparams)):
            if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                raise MisconfigurationException(f"`{name}` has to be a list of names, found {value!r}.")
        self.charts, self.metrics, self.hparams = list(charts), list(metrics), list(hparams)
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self._splits: list[int] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse names that match no hyper-parameter."""
        if stage != "fit":
            return
        chosen_hparams(pl_module.hparams_initial, self.hparams)
        if any(each._default_hp_metric for each in instances(trainer.loggers, "loggers", "TensorBoardLogger")):
            rank_zero_warn(
                "TensorBoard keeps the first table of hyper-parameters of a run, and TensorBoardLogger writes one "
                "without metrics: give it `default_hp_metric=False` to keep the table of `TensorBoardReport`."
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
        # The table's columns and metrics are fixed at the start; metric values follow as scalars.
        experiment, start, _ = _hparams_summaries(columns, dict.fromkeys(metrics, 0.0))
        for board in boards:
            board.add_custom_scalars(layout(self.charts, bool(getattr(_data(trainer), "clauses", None))))
            for summary in (experiment, start):
                board.file_writer.add_summary(summary)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Modules may log the metrics of an epoch after the callbacks' hook for its end.
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
        # Every process reads the metrics, because reading one may gather it.
        latest = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._splits.append(trainer.global_step)
        for board in _boards(trainer):
            for chart in self.charts:
                for step, value in marker(trainer.global_step, height(latest, chart)):
                    board.add_scalar(f"expansion/split/{chart}", value, step)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = _best(trainer)
        boards = _boards(trainer)
        if not boards:
            return
        from fpe_lightning.interference.curves import curves_figure  # matplotlib takes a second to import

        *_, end = _hparams_summaries({}, {})
        for board in boards:
            if best is not None and best[1] is not None:
                board.add_scalar(best[0], best[1], trainer.global_step)
            board.file_writer.add_summary(end)
            for chart in self.charts:
                curves = {name: points for name, points in self._curves.items() if re.match(pattern(chart), name)}
                if curves:
                    figure = curves_figure(curves, self._splits, chart)
                    board.add_figure(f"curves/{chart}", figure, trainer.global_step, close=False)


def pattern(chart: str) -> str:
    """The regular expression for the metrics of a chart: names that contain the chart's, except test metrics.

    Example:
        >>> [name for name in ("val/loss", "train_loss", "test/loss", "val/f1") if re.match(pattern("loss"), name)]
        ['val/loss', 'train_loss']
    """
    return rf"(?!test|best|expansion/).*{re.escape(chart)}"


def layout(charts: Sequence[str], clauses: bool = False) -> dict[str, dict[str, list[Any]]]:
    """The charts of the tab *Custom Scalars*: training metrics with their splits, and measures of the sites.

    Args:
        charts: Parts of metric names, one for each chart of training.
        clauses: Whether the data know clauses.

    Example:
        >>> layout(["loss"])["training"]["loss"]
        ['Multiline', ['(?!test|best|expansion/).*loss', 'expansion/split/loss$']]
    """
    training = {chart: ["Multiline", [pattern(chart), f"expansion/split/{re.escape(chart)}$"]] for chart in charts}
    sites = SITES | (CLAUSES if clauses else {})
    return {"training": training, "sites": {title: ["Multiline", [tags]] for title, tags in sites.items()}}


def marker(step: int, top: float) -> list[tuple[int, float]]:
    """Steps and values of a curve that looks like a vertical line; TensorBoard keeps one value per step.

    Example:
        >>> marker(12, 3.5)
        [(11, 0.0), (12, 3.5), (13, 0.0)]
    """
    return [(step - 1, 0.0), (step, top), (step + 1, 0.0)]


def height(latest: Mapping[str, float], chart: str) -> float:
    """The height of the line of a split: the largest of a chart's metrics, or 1 before any of them is finite.

    Example:
        >>> height({"train/loss": 2.0, "val/loss": 2.5, "test/loss": 9.0}, "loss"), height({}, "loss")
        (2.5, 1.0)
    """
    found = [value for name, value in latest.items() if re.match(pattern(chart), name) and math.isfinite(value)]
    return max(found, default=1.0)


def _hparams_summaries(columns: Mapping[str, float | str], metrics: Mapping[str, float]) -> tuple[Any, Any, Any]:
    """The three records of TensorBoard's table: the experiment, the start of a session, and its end."""
    from torch.utils.tensorboard.summary import hparams  # importing tensorboard takes a second

    return hparams(dict(columns), dict(metrics))


def _data(trainer: Trainer) -> object:
    return getattr(trainer, "datamodule", None)


def _best(trainer: Trainer) -> tuple[str, float | None] | None:
    """Name and best value of the monitored metric; the value is None before the first checkpoint."""
    checkpoint = next(iter(instances(trainer.checkpoint_callbacks, "callbacks", "ModelCheckpoint")), None)
    if checkpoint is None or checkpoint.monitor is None:
        return None
    score = checkpoint.best_model_score
    return f"best/{checkpoint.monitor}", None if score is None else float(score)


def _boards(trainer: Trainer) -> list[Any]:
    """The TensorBoard writers of the trainer, on the first process only."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in instances(trainer.loggers, "loggers", "TensorBoardLogger")]
