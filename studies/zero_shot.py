"""Classify images with a CLIP encoder by the nearest class text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fpe_lightning.data.encoder import ImageEncoder


def zero_shot_accuracy(
    encoder: ImageEncoder,
    dataset: Dataset[tuple[Any, int]],
    prompts: Sequence[str] | None = None,
    batch_size: int = 256,
) -> float:
    """Classify images by the nearest class text, without training.

    The text embedding of a class is the mean of the normalised embeddings of its prompts.

    Args:
        encoder: The encoder of images and texts.
        dataset: Pairs of an image (PIL, or a preprocessed tensor) and a label, with ``classes``, the names of the
            labels.
        prompts: Templates with ``{}`` for the class name; None takes ``dataset.prompts`` if the data set has them,
            otherwise ``"a photo of a {}."``.
        batch_size: Number of images per batch of the encoder.

    Returns:
        The fraction of correctly classified images, in 0 .. 1.

    Raises:
        ValueError: If there are no prompts, or one has no place for the class name.
        TypeError: If the data set does not name its classes.

    Example:
        >>> from fpe_lightning.data.encoder import load_encoder
        >>> from fpe_lightning.data.glyphs import GlyphDataset
        >>> zero_shot_accuracy(load_encoder(), GlyphDataset("test", size=94)) > 0.25
        True
    """
    classes = getattr(dataset, "classes", None)
    if classes is None:
        raise TypeError(
            f"zero_shot_accuracy needs a data set with .classes, names to put into prompts; got {dataset!r}."
        )
    prompts = getattr(dataset, "prompts", ("a photo of a {}.",)) if prompts is None else prompts
    if not prompts or any("{}" not in prompt for prompt in prompts):
        raise ValueError(f"zero_shot_accuracy needs prompts that hold {{}} for the class name, got {list(prompts)}.")
    # One embedding per class: the mean over its prompts.
    texts = torch.stack([encoder.encode_text([prompt.format(name) for name in classes]) for prompt in prompts]).mean(0)

    def collate(batch: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        images = [image if isinstance(image, Tensor) else encoder.preprocess(image) for image, _ in batch]
        return torch.stack(images), torch.tensor([label for _, label in batch])

    correct = total = 0
    # With a generator of its own, the loader does not draw from the global generator.
    for images, labels in DataLoader(dataset, batch_size, collate_fn=collate, generator=torch.Generator()):
        predicted = (encoder.encode(images) @ texts.T).argmax(dim=1).cpu()
        correct += int((predicted == labels).sum())
        total += len(labels)
    return correct / total
