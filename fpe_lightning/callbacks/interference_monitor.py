"""Log interference over the course of training, and draw every split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from fpe_lightning.callbacks.lightnings import Callback, MisconfigurationException, instances, loaded
from fpe_lightning.extras import require
from fpe_lightning.interference import LayerState, has_weight, was_split

_NAMES_IN_A_MESSAGE = 12


class InterferenceMonitor(Callback):
    """Log how much the features of a layer interfere: at regular epochs, and right before and after each split.

    Every logger gets the scalars ``interference/<site>/feature_capacity`` (mean over the inputs),
    ``.../mean_cosine_similarity``, ``.../mean_absolute_cosine_similarity``, ``.../width``, ``.../mean_fan_in`` and
    ``.../nonzeros``, and ``expansion/width/<site>``, which steps up at each split. If the datamodule knows clauses
    (``clauses``, and ``num_features`` inputs), the first linear layer with as many inputs also gets
    ``.../clause_collisions`` and ``.../clause_coverage``. TensorBoard also gets a histogram of the capacities and, at
    each split, the figures of ``fpe_lightning.interference.figures``. If the inputs of a layer are split too, its
    columns are copied, and the copies share their capacity until training separates them.

    The callback keeps no state. It reads from the model's own structure which layers were split, so it treats a resumed
    run like the first one. Capacity costs about ``inputs * neurons * min(inputs, neurons)`` multiplications per layer
    and epoch, so name ``sites`` or raise ``every_n_epochs`` for very large layers.

    Args:
        every_n_epochs: Number of training epochs between two measurements. The start of training and both sides of
            each split are always measured.
        sites: Qualified names of layers, or globs of such names, relative to the ``LightningModule``. None measures
            all layers that were split, from right before their split.
        figures: Whether to draw figures at a split; scalars and histograms are logged in any case.

    Raises:
        MisconfigurationException: If an argument is out of range, if a name or glob matches no layer of the model, or
            if the strategy is FSDP or DeepSpeed, which shard the weights.

    Example:
        >>> from fpe_lightning.callbacks import InterferenceMonitor
        >>> monitor = InterferenceMonitor(every_n_epochs=5, sites=["network.*"])
        >>> monitor.every_n_epochs
        5
    """

    def __init__(self, every_n_epochs: int = 1, sites: str | list[str] | None = None, figures: bool = True) -> None:
        if not isinstance(every_n_epochs, int) or isinstance(every_n_epochs, bool) or every_n_epochs < 1:
            raise MisconfigurationException(
                f"`every_n_epochs` must be a whole number of at least 1, but found {every_n_epochs!r}."
            )
        patterns = [sites] if isinstance(sites, str) else sites
        if patterns is not None and (
            not isinstance(patterns, Sequence) or not patterns or not all(isinstance(name, str) for name in patterns)
        ):
            raise MisconfigurationException(
                f"`sites` must be None, a name or glob, or a non-empty list of those, but found {sites!r}."
            )
        if not isinstance(figures, bool):
            raise MisconfigurationException(f"`figures` must be True or False, but found {figures!r}.")
        self.every_n_epochs = every_n_epochs
        self.sites = None if patterns is None else list(patterns)
        self.figures = figures
        self._before: dict[str, LayerState] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that shard weights."""
        if stage == "fit" and isinstance(trainer.strategy, loaded("strategies", "FSDPStrategy", "DeepSpeedStrategy")):
            raise MisconfigurationException(
                f"`InterferenceMonitor` needs whole weights, but found {type(trainer.strategy).__name__}, which shards "
                "them: use one device, DDP or ModelParallelStrategy, or leave the callback out."
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse names that match no layer; before this hook, some modules may not exist."""
        self._watched(pl_module)
        if self.figures and _boards(trainer):
            require("template", "A figure of `InterferenceMonitor`", "matplotlib")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained network; a resumed run measured it at its first start."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, self._watched(pl_module))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure every ``every_n_epochs`` epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module, self._watched(pl_module))

    def on_before_expansion(self, trainer: Trainer, pl_module: LightningModule, sites: Iterable[Any]) -> None:
        """Measure the layers that will be split, and keep a copy of them.

        Args:
            trainer: The trainer.
            pl_module: The module.
            sites: The sites that will be split, or their names.
        """
        self._before = self._measure(trainer, pl_module, self._chosen(pl_module, sites))

    def on_after_expansion(self, trainer: Trainer, pl_module: LightningModule, report: Any) -> None:
        """Measure the layers that were split, and draw them before and after.

        Args:
            trainer: The trainer.
            pl_module: The module.
            report: The expansion report; ``report.sites`` names the layers.
        """
        before, self._before = self._before, {}
        after = self._measure(trainer, pl_module, self._chosen(pl_module, report.sites))
        boards = _boards(trainer)
        if self.figures and boards:
            for name in [name for name in before if name in after]:
                _draw(boards, name, before[name], after[name], trainer.global_step)

    def _is_watched(self, name: str) -> bool:
        return self.sites is None or any(fnmatchcase(name, pattern) for pattern in self.sites)

    def _chosen(self, pl_module: LightningModule, sites: Iterable[Any]) -> list[str]:
        """Names of the watched sites; a producer without a ``weight`` of its own cannot be watched."""
        layers = {name for name, module in pl_module.named_modules() if has_weight(module)}
        return [name for name in filter(self._is_watched, _names(sites)) if name in layers]

    def _watched(self, pl_module: LightningModule) -> list[str]:
        """Names of the layers to measure now, in the order of the model."""
        layers = {name: module for name, module in pl_module.named_modules() if has_weight(module)}
        if self.sites is None:
            return [name for name, layer in layers.items() if was_split(layer)]
        for pattern in self.sites:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise MisconfigurationException(
                    f"`sites` of `InterferenceMonitor` asks for {pattern!r}, which matches no layer with a weight; the "
                    f"model has {_listed(list(layers))}."
                )
        return [name for name in layers if self._is_watched(name)]

    def _measure(self, trainer: Trainer, pl_module: LightningModule, names: Iterable[str]) -> dict[str, LayerState]:
        """Log the statistics of layers, and return the states that they describe (on the first process)."""
        if not trainer.loggers:
            return {}
        # Every process copies the states: all of them take part in gathering a sharded weight.
        states = {name: LayerState.of(pl_module.get_submodule(name)) for name in names}
        if not trainer.is_global_zero or not states:
            return {}
        # Scalars of all layers go to each logger in one call.
        metrics: dict[str, float] = {}
        reader = _reader_of_clauses(trainer, pl_module)
        for name, state in states.items():
            statistics = state.statistics()
            if name == reader:
                statistics |= state.clause_statistics(trainer.datamodule.clauses)  # type: ignore[attr-defined]
            metrics |= {f"interference/{name}/{key}": value for key, value in statistics.items()}
            metrics[f"expansion/width/{name}"] = statistics["width"]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        for board in _boards(trainer):
            for name, state in states.items():
                if state.capacities.isfinite().all():  # TensorBoard cannot bin NaN
                    board.add_histogram(
                        f"interference/{name}/feature_capacities", state.capacities, trainer.global_step
                    )
        return states


def _draw(boards: Iterable[Any], name: str, before: LayerState, after: LayerState, step: int) -> None:
    """Send the figures of one split to the TensorBoard writers."""
    # Matplotlib takes a second to import, and many runs draw nothing.
    from fpe_lightning.interference.figures import capacity_figure, gram_figure, mask_figure
    from fpe_lightning.interference.weight_figures import kernel_figure, weights_figure

    figures = {
        "mask": mask_figure(after, name),
        "gram": gram_figure(before, after, name),
        "weights": weights_figure(before, after, name),
        "capacities": capacity_figure(before, after, name),
    }
    if after.weight.dim() > 2:
        figures["kernels"] = kernel_figure(before, after, name)
    for board in boards:
        for kind, figure in figures.items():
            board.add_figure(f"interference/{name}/{kind}", figure, step, close=False)


def _boards(trainer: Trainer) -> list[Any]:
    """The TensorBoard writers of the trainer."""
    return [logger.experiment for logger in instances(trainer.loggers, "loggers", "TensorBoardLogger")]


def _reader_of_clauses(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """The layer that reads the inputs of the clauses: the first with as many inputs, as deeper ones may have too."""
    data = getattr(trainer, "datamodule", None)
    if not getattr(data, "clauses", None):
        return None
    inputs = getattr(data, "num_features", None)
    linear = (
        name
        for name, module in pl_module.named_modules()
        if has_weight(module) and module.weight.dim() == 2 and module.weight.shape[1] == inputs
    )
    return next(linear, None)


def _names(sites: Iterable[Any]) -> list[str]:
    """The names of sites, given as objects or as names."""
    return [site if isinstance(site, str) else site.name for site in sites]


def _listed(names: list[str]) -> str:
    """Names for a message, cut off after the first dozen."""
    if not names:
        return "none"
    more = len(names) - _NAMES_IN_A_MESSAGE
    shown = ", ".join(repr(name) for name in names[:_NAMES_IN_A_MESSAGE])
    return f"{shown} and {more} more" if more > 0 else shown
