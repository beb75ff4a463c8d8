"""Forecasts: neuralforecast, which makes its own Trainer, and pytorch-forecasting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.field.project import Project
from benchmarks.field.trainers import InTrainer

STEPS = 4
"""Steps that stand for an epoch of neuralforecast, which counts steps alone."""


class NeuralForecasts(Project):
    """An MLP of neuralforecast, trained by ``fit`` and loaded by ``NeuralForecast.load``."""

    name = "neuralforecast"
    packages = ("neuralforecast",)
    exact = False  # `fit` of a loaded model begins with a new optimizer
    moment = {"step": STEPS}  # noqa: RUF012

    def series(self) -> Any:
        """One sine."""
        import pandas as pd

        days = pd.date_range("2020", periods=100)
        return pd.DataFrame({"unique_id": "a", "ds": days, "y": np.sin(np.arange(100) / 5)})

    def forecast(self, epochs: int, callbacks: Sequence[Any]) -> Any:
        """The project's object around its model."""
        from neuralforecast import NeuralForecast
        from neuralforecast.models import MLP

        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_model_summary": False}
        model = MLP(h=4, input_size=16, hidden_size=32, max_steps=STEPS * epochs, **quiet)
        model.trainer_kwargs["callbacks"] = list(callbacks) or None
        return NeuralForecast([model], freq="D")

    def build(self) -> nn.Module:
        """The model."""
        return self.forecast(1, ()).models[0]

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """``fit`` and ``save``; a resumed run fits a loaded model on."""
        from neuralforecast import NeuralForecast

        if resume is not None:
            import fpe_lightning as fpe

            with fpe.expanded_checkpoints():
                forecast = NeuralForecast.load(str(resume / "saved"))
        else:
            forecast = self.forecast(epochs, callbacks)
        forecast.fit(self.series())
        # `fit` works on a copy of the model, callbacks included.
        for mine, used in zip(callbacks, forecast.models[0].trainer_kwargs.pop("callbacks", None) or (), strict=False):
            vars(mine).update(vars(used))
        forecast.save(str(folder / "saved"), overwrite=True)
        return forecast.models[0]

    def load(self, folder: Path) -> nn.Module:
        """``NeuralForecast.load``."""
        from neuralforecast import NeuralForecast

        return NeuralForecast.load(str(folder / "saved")).models[0]

    def outputs(self, model: nn.Module) -> Tensor:
        """A forecast for one window."""
        window = {"insample_y": torch.linspace(-1, 1, 32).view(2, 16, 1), "insample_mask": torch.ones(2, 16, 1)}
        window |= {"hist_exog": None, "futr_exog": None, "stat_exog": None}  # type: ignore[dict-item]
        with torch.no_grad():
            return model.eval()(window)


class Forecasting(InTrainer):
    """A model of pytorch-forecasting; loaded by ``load_from_checkpoint``."""

    packages = ("pytorch-forecasting",)
    kind = ""
    options: dict[str, Any] = {}  # noqa: RUF012

    def dataset(self) -> Any:
        """Windows of two sines."""
        import pandas as pd
        from pytorch_forecasting import TimeSeriesDataSet

        frames = [
            pd.DataFrame({"time": range(40), "series": name, "value": np.sin(np.arange(40) / 4 + shift) + 2})
            for shift, name in enumerate("ab")
        ]
        return TimeSeriesDataSet(
            pd.concat(frames, ignore_index=True),
            time_idx="time",
            target="value",
            group_ids=["series"],
            max_encoder_length=8,
            max_prediction_length=4,
            time_varying_unknown_reals=["value"],
        )

    def build(self) -> nn.Module:
        """Built from the data set."""
        import pytorch_forecasting

        torch.manual_seed(0)
        kind = getattr(pytorch_forecasting, self.kind)
        return kind.from_dataset(self.dataset(), learning_rate=1e-3, **self.options)

    def data(self) -> Any:
        """Batches in a fixed order; the last one is left out."""
        return self.dataset().to_dataloader(train=False, batch_size=8, num_workers=0)

    def outputs(self, model: nn.Module) -> Tensor:
        """Predictions for the first batch."""
        with torch.no_grad():
            return model.eval()(next(iter(self.data()))[0]).prediction


class NHits(Forecasting):
    """N-HiTS."""

    name = "pytorch-forecasting/NHiTS"
    kind, options = "NHiTS", {"hidden_size": 16, "dropout": 0.0}


class TFT(Forecasting):
    """The temporal fusion transformer, with its LSTM."""

    name = "pytorch-forecasting/TFT"
    kind, options = "TemporalFusionTransformer", {"hidden_size": 16, "dropout": 0.0, "hidden_continuous_size": 8}


class DeepAR(Forecasting):
    """DeepAR, an LSTM with a linear layer: it has no hidden width to split, and says so."""

    name = "pytorch-forecasting/DeepAR"
    kind, options = "DeepAR", {"hidden_size": 16, "dropout": 0.0}


PROJECTS: tuple[type[Project], ...] = (NeuralForecasts, NHits, TFT, DeepAR)
