"""Frozen CLIP encoders from open_clip: one function loads any of them, the embedded encoder included."""

from __future__ import annotations

import difflib
import hashlib
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from open_clip.pretrained import get_pretrained_cfg, is_pretrained_cfg
from torch import Tensor, nn
from torch.nn import functional as F

GLYPH_CLIP = "glyph-clip"
GLYPH_CLIP_DIRECTORY = Path(__file__).parents[1] / "assets" / "glyph_clip"
"""Directory of the embedded encoder, in open_clip's form."""


@dataclass(eq=False)
class ImageEncoder:
    """A frozen open_clip model with its preprocessing and tokenizer.

    Attributes:
        name: Name of model and weights, such as ``"ViT-B-32/laion2b_s34b_b79k"`` or ``"glyph-clip"``.
        model: The open_clip model, in evaluation mode, without gradients.
        preprocess: The evaluation transform, from a PIL image to a float tensor ``(3, height, width)``.
        tokenizer: From a list of texts to int64 tokens ``(texts, context length)``.

    Example:
        >>> from PIL import Image
        >>> encoder = load_encoder("glyph-clip")
        >>> image = encoder.preprocess(Image.new("RGB", (32, 32)))
        >>> encoder.encode(torch.stack([image, image])).shape
        torch.Size([2, 512])
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def encode(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Embed a batch of preprocessed images.

        Args:
            images: Float tensor ``(n, 3, height, width)``, on any device.
            normalize: Whether to scale every embedding to Euclidean length one.

        Returns:
            Float32 tensor ``(n, dim)`` on the encoder's device.

        Raises:
            ValueError: If the images do not form a batch with three channels.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"CLIP model {self.name!r} encodes images of shape (n, 3, height, width), got {tuple(images.shape)}: "
                "apply encoder.preprocess to each picture and stack the results."
            )
        device = next(self.model.parameters()).device
        features = self.model.encode_image(images.to(device)).float()  # type: ignore[operator]
        return F.normalize(features, dim=-1) if normalize else features

    @torch.no_grad()
    def encode_text(self, texts: list[str], normalize: bool = True) -> Tensor:
        """Embed texts into the space of the images.

        Args:
            texts: ``n`` texts; each is cut off at the context length.
            normalize: Whether to scale every embedding to Euclidean length one.

        Returns:
            Float32 tensor ``(n, dim)`` on the encoder's device.
        """
        device = next(self.model.parameters()).device
        features = self.model.encode_text(self.tokenizer(texts).to(device)).float()  # type: ignore[operator]
        return F.normalize(features, dim=-1) if normalize else features

    @cached_property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.encode_text([""]).shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over the names, shapes, types and bytes of the weights, in the order of the names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def preprocess_description(self) -> str:
        """The settings of ``preprocess`` (size, mean, standard deviation, interpolation, ...) as JSON."""
        return json.dumps(open_clip.get_model_preprocess_cfg(self.model), sort_keys=True)


def load_encoder(
    model: str = GLYPH_CLIP, pretrained: str | None = None, device: str | torch.device = "cpu"
) -> ImageEncoder:
    """Load a pretrained open_clip model.

    Args:
        model: ``"glyph-clip"`` (embedded in this package), an architecture that open_clip lists (``"ViT-B-32"``),
            ``"hf-hub:ORGANISATION/NAME"``, ``"local-dir:DIRECTORY"``, or ``"timm:NAME"`` for an image encoder of timm.
        pretrained: For an architecture: a tag that open_clip lists for it (``"laion2b_s34b_b79k"``) or the path of a
            checkpoint file. None for the other kinds, which include their weights.
        device: Device of the model.

    Returns:
        The encoder, frozen, in float32.

    Raises:
        ValueError: If the model or tag is unknown, or ``pretrained`` is missing or superfluous.
        FileNotFoundError: If the directory is missing or incomplete.
        RuntimeError: If the weights are neither in the local cache nor downloadable, or do not fit.

    Example:
        >>> load_encoder("glyph-clip").dim
        512
    """
    if model.startswith("timm:"):
        from fpe_lightning.data.timm_encoder import load_timm  # which needs the class of this file

        return load_timm(model.removeprefix("timm:"), pretrained, device)
    source = _source(model, pretrained)
    try:
        # open_clip draws initial weights, which the checkpoint then replaces: keep the caller's random state.
        with torch.random.fork_rng(devices=[]):
            # Unlike create_model_and_transforms, this function raises if the weights are missing.
            clip, preprocess = open_clip.create_model_from_pretrained(source, pretrained, device=device)
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:
        raise RuntimeError(_cannot_load(source, pretrained, error)) from error
    clip.eval().requires_grad_(False)
    return ImageEncoder(f"{model}/{pretrained}" if pretrained else model, clip, preprocess, tokenizer)


def _source(model: str, pretrained: str | None) -> str:
    """Return open_clip's name of the model, after all checks that need no loading."""
    source = f"{LOCAL_DIR_PREFIX}{GLYPH_CLIP_DIRECTORY}" if model == GLYPH_CLIP else model
    if not source.startswith((LOCAL_DIR_PREFIX, HF_HUB_PREFIX)):
        source = source.replace("/", "-")
        _check_architecture(source, pretrained)
    elif pretrained is not None:
        raise ValueError(f"CLIP model {model!r} brings its own weights: leave out pretrained={pretrained!r}.")
    elif source.startswith(LOCAL_DIR_PREFIX):
        _check_directory(model, Path(source.removeprefix(LOCAL_DIR_PREFIX)))
    return source


def _check_architecture(name: str, pretrained: str | None) -> None:
    names = [GLYPH_CLIP, *open_clip.list_models()]
    if name not in names:
        raise ValueError(
            f"There is no CLIP model {name!r}{_nearest(name, names)}: it must be {GLYPH_CLIP!r}, a name from "
            "open_clip.list_models(), 'hf-hub:ORGANISATION/NAME' or 'local-dir:DIRECTORY'."
        )
    # The name is known; now the weights need a tag or a file.
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = ", ".join(tags) or "none"
    if pretrained is None:
        raise ValueError(
            f"CLIP model {name!r} needs pretrained weights: give a tag that open_clip lists for it ({known}) or the "
            "path of a checkpoint file."
        )
    if not is_pretrained_cfg(name, pretrained) and not Path(pretrained).is_file():
        raise ValueError(
            f"CLIP model {name!r} has no pretrained weights {pretrained!r}{_nearest(pretrained, tags)}: it is neither "
            f"a tag that open_clip lists for it ({known}) nor the path of a checkpoint file."
        )


def _check_directory(model: str, directory: Path) -> None:
    if not directory.is_dir():
        missing = "the directory itself"
    elif not (directory / "open_clip_config.json").is_file():
        missing = "open_clip_config.json"
    elif not any(path.suffix in (".safetensors", ".bin", ".pth") for path in directory.iterdir()):
        missing = "a checkpoint"
    else:
        return
    raise FileNotFoundError(
        f"CLIP model {model!r} was looked for in {directory.absolute()}, where {missing} is missing: put "
        "open_clip_config.json and open_clip_model.safetensors into that directory."
    )


def _cannot_load(source: str, pretrained: str | None, error: Exception) -> str:
    """One sentence with the model, the places of the search, and the way to provide the weights by hand."""
    asked = f"CLIP model {source!r}" + (f" with weights {pretrained!r}" if pretrained else "")
    # open_clip nests the messages of the functions that it calls; the last one is the cause.
    reason = " ".join(str(error).split("Last error: ")[-1].split()) or type(error).__name__
    if source.startswith(LOCAL_DIR_PREFIX) or (pretrained and Path(pretrained).is_file()):
        return f"{asked} was found but does not load: {textwrap.shorten(reason, 300)}"
    reason = reason.split(". ")[0].rstrip(".")
    settings = get_pretrained_cfg(source, pretrained) if pretrained else {}
    origin = settings.get("hf_hub") or settings.get("url") or source.removeprefix(HF_HUB_PREFIX)
    return (
        f"{asked} could be loaded neither from the cache {HF_HUB_CACHE} nor from {origin.rstrip('/')} on the Hugging "
        f"Face Hub ({reason}): to provide it by hand, give a checkpoint file as pretrained='FILE', or model="
        "'local-dir:DIRECTORY' with open_clip_config.json and open_clip_model.safetensors in it, or take "
        "model='glyph-clip', which needs no download."
    )


def _nearest(word: str, words: Sequence[str]) -> str:
    """Return ``" (did you mean ...?)"`` with the most similar word, regardless of case, or nothing."""
    by_lower_case = {candidate.lower(): candidate for candidate in words}
    close = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f" (did you mean {by_lower_case[close[0]]!r}?)" if close else ""
