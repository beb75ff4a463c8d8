"""Frozen image encoders of timm: ``encoder: timm:NAME``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from fpe_lightning.data.encoder import ImageEncoder
from fpe_lightning.extras import extra

TIMM = "timm:"


@dataclass(eq=False)
class TimmEncoder(ImageEncoder):
    """A frozen model of timm without its classifier.

    It embeds pictures only. The other attributes are those of
    :class:`~fpe_lightning.data.encoder.ImageEncoder`.

    Attributes:
        settings: Those of ``preprocess``.
    """

    settings: dict[str, Any]

    @override
    @torch.no_grad()
    def encode(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Embed a batch of preprocessed images ``(n, 3, height, width)`` as float32 ``(n, dim)``."""
        device = next(self.model.parameters()).device
        features = self.model(images.to(device)).float()
        return F.normalize(features, dim=-1) if normalize else features

    @override
    @torch.no_grad()
    def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
        """Refuse: models of timm read no text.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.name!r} embeds pictures only; take a CLIP model for texts.")

    @cached_property
    @override
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.model.num_features)  # type: ignore[arg-type]

    @property
    @override
    def preprocess_description(self) -> str:
        """The settings of ``preprocess`` as JSON."""
        return json.dumps(self.settings, sort_keys=True, default=str)


def load_timm(name: str, pretrained: str | None, device: str | torch.device) -> TimmEncoder:
    """Load a model of timm.

    Args:
        name: A name that timm lists, such as ``"vit_small_patch14_dinov2.lvd142m"``.
        pretrained: The file of its weights; None takes those of the Hub, from the cache or downloaded.
        device: Device of the model.

    Raises:
        ValueError: If timm knows no such model, or there is no such file.
        RuntimeError: If the weights can be had neither from the cache nor from the Hub, or do not fit.
    """
    with extra("bench", f"`encoder: {TIMM}{name}`"):
        import timm
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {TIMM}{nearest[0]}?" if nearest else ""
        raise ValueError(f"timm has no model {name!r}.{hint}")
    if pretrained is not None and not Path(pretrained).is_file():
        raise ValueError(f"`pretrained` of {TIMM}{name} is a file of weights, or left out; found {pretrained!r}.")
    source: dict[str, Any] = {"pretrained": True}
    if pretrained is not None:
        source["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and then replaced
            model: nn.Module = timm.create_model(name, num_classes=0, **source)
    except Exception as error:
        raise RuntimeError(
            f"{TIMM}{name} does not load: {' '.join(str(error).split())[:300]} To provide the weights by hand, give "
            "their file as `pretrained: FILE`."
        ) from error
    model.eval().requires_grad_(False).to(device)
    data: Any = timm.data
    settings = data.resolve_model_data_config(model)
    preprocess: Callable[[Any], Tensor] = data.create_transform(**settings, is_training=False)
    return TimmEncoder(f"{TIMM}{name}", model, preprocess, lambda texts: torch.empty(0), settings)
