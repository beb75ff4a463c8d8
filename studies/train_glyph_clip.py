"""Train the small CLIP that ships with the package: ``python -m studies.train_glyph_clip --output DIR``.

Image and text tower are trained from scratch, contrastively, on pictures and captions of the training fonts alone: the
validation and test fonts of :class:`GlyphDataset` stay unseen. The result is a directory that open_clip loads by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from jsonargparse import auto_cli
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fpe_lightning.data.encoder import load_encoder
from fpe_lightning.data.glyphs import CHARACTERS, SPLITS, GlyphDataset
from studies.zero_shot import zero_shot_accuracy

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 512,
        # A residual network learns strokes from far fewer pictures than a transformer of its size. Its stem halves the
        # resolution twice, hence 32x32 pictures are enlarged to 64x64.
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None},
        # The table of open_clip's 49,408 tokens is most of the file, hence the narrow text tower.
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}
"""The content of ``open_clip_config.json``: the architecture and the preprocessing."""


class CaptionedGlyphs(Dataset[tuple[Tensor, str]]):
    """Preprocessed pictures of a :class:`GlyphDataset` with their captions in the place of their labels.

    Args:
        glyphs: The pictures; their transform gives tensors.
    """

    def __init__(self, glyphs: GlyphDataset) -> None:
        self.glyphs = glyphs

    def __len__(self) -> int:
        return len(self.glyphs)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """Return picture ``index`` and its caption."""
        return self.glyphs[index][0], self.glyphs.caption(index)


def contrastive_loss(images: Tensor, texts: Tensor, caption: Tensor, logit_scale: Tensor) -> Tensor:
    """Compute CLIP's symmetric loss with all pairs of the same caption counted as positives, in equal shares.

    Args:
        images: ``(n, dim)`` normalised embeddings of the pictures.
        texts: ``(captions, dim)`` normalised embeddings of the distinct captions.
        caption: ``(n,)`` int64, the row of ``texts`` that belongs to each picture.
        logit_scale: Scalar factor of the cosine similarities.

    Returns:
        Scalar: mean of the two cross-entropies, pictures to texts and texts to pictures.

    Example:
        >>> eye = torch.eye(2)
        >>> float(contrastive_loss(eye, eye, torch.arange(2), torch.tensor(100.0)))
        0.0
    """
    logits = logit_scale * images @ texts.T
    belongs = F.one_hot(caption, len(texts)).T.float()
    return (F.cross_entropy(logits, caption) + F.cross_entropy(logits.T, belongs / belongs.sum(1, keepdim=True))) / 2


def train(
    output: Path,
    steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    warmup_steps: int = 50,
    seed: int = 1,
    evaluation_size: int | None = None,
) -> None:
    """Train the glyph CLIP and write it in open_clip's directory form, with a model card.

    Every step sees new pictures. Deterministic in the seed for a given number of threads.

    Args:
        output: Directory to write ``open_clip_config.json``, ``open_clip_model.safetensors`` and ``README.md`` to.
        steps: Optimizer steps.
        batch_size: Pictures a step, at least 2.
        learning_rate: Peak rate of AdamW, after a linear warm-up and before a cosine decay to zero.
        weight_decay: Decay of the weight matrices; biases, norms and the temperature are not decayed.
        warmup_steps: Steps of the warm-up.
        seed: Seeds the initial weights and the pictures; data sets use another seed by default, so that the pictures
            embedded later are not the ones trained on.
        evaluation_size: Pictures of each held-out split to report the zero-shot accuracy on; None means all.

    Raises:
        ValueError: If there is no step to take, or a batch is too small to contrast anything.
    """
    if steps < 1 or batch_size < 2:
        raise ValueError(f"Training needs steps >= 1 and batch_size >= 2, got {steps} and {batch_size}.")
    output.mkdir(parents=True, exist_ok=True)
    (output / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")

    model, preprocess = _initial_model(output, seed)
    glyphs = GlyphDataset("train", size=steps * batch_size, seed=seed, transform=preprocess)
    optimizer = torch.optim.AdamW(_parameter_groups(model, weight_decay), lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup_steps) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{output}")
    model.train()
    # with a generator of its own, the loader does not draw from the global one
    loader = DataLoader(CaptionedGlyphs(glyphs), batch_size, generator=torch.Generator())
    for images, captions in _with_progress(loader):
        distinct = list(dict.fromkeys(captions))
        caption = torch.tensor([distinct.index(text) for text in captions])
        loss = contrastive_loss(
            model.encode_image(images.contiguous(memory_format=torch.channels_last), normalize=True),
            model.encode_text(tokenizer(distinct), normalize=True),
            caption,
            model.logit_scale.exp(),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
    _save(model, output)

    encoder = load_encoder(f"local-dir:{output}")
    accuracies = {split: zero_shot_accuracy(encoder, GlyphDataset(split, evaluation_size)) for split in ("val", "test")}
    (output / "README.md").write_text(model_card(steps, batch_size, seed, accuracies))
    print(", ".join(f"zero-shot accuracy on {split}: {value:.1%}" for split, value in accuracies.items()))


def _initial_model(directory: Path, seed: int) -> tuple[Any, Callable[[Any], Tensor]]:
    """Draw initial weights in a fork of the global generator, the only one that open_clip knows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}", load_weights=False)
    return model.to(memory_format=torch.channels_last), preprocess  # twice as fast on a CPU


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _save(model: nn.Module, directory: Path) -> None:
    """Store floating-point tensors in half precision, which halves the file at no measurable cost."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "open_clip_model.safetensors")


def model_card(steps: int, batch_size: int, seed: int, accuracies: dict[str, float]) -> str:
    """Write the model card: the architecture, the training data and its limits, the accuracy, and the licence.

    Args:
        steps: Optimizer steps taken.
        batch_size: Pictures a step.
        seed: Seed of the run.
        accuracies: Zero-shot accuracy, 0 .. 1, by split.

    Returns:
        The text of a README.md.
    """
    rows = "\n".join(
        f"| {split} | {', '.join(SPLITS[split])} | {accuracy:.1%} |" for split, accuracy in accuracies.items()
    )
    return f"""# Glyph CLIP

A small CLIP for 32x32 pictures of printed ASCII characters: a residual image tower and a one-layer text tower with
512-dimensional embeddings, in open_clip's directory form, weights in half precision.

    open_clip.create_model_and_transforms("local-dir:<this directory>")

It exists so that experiments on frozen CLIP embeddings run without a download. It knows nothing but glyphs.

## Training
From scratch, seed {seed}: {steps} steps of {batch_size} pictures, all different, with their captions (style and Unicode
name, such as "bold serif digit seven"), drawn from these fonts alone:
{", ".join(SPLITS["train"])}.

    python -m studies.train_glyph_clip --output DIR --steps {steps} --batch_size {batch_size} --seed {seed}

## Zero-shot accuracy on fonts that training never saw (94 classes, chance {1 / len(CHARACTERS):.1%})
| split | fonts | accuracy |
|---|---|---|
{rows}

## Licence
The weights are part of fpe_lightning and under its licence, Apache-2.0. They hold no font and no outline. The pictures
were rendered from fonts that matplotlib ships under their own licences: DejaVu (Bitstream Vera and Arev licences, its
changes in the public domain), STIX (STIX Font License) and Computer Modern (BaKoMa Fonts Licence).
"""


def _with_progress(batches: DataLoader[Any]) -> Iterator[Any]:
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        yield from progress.track(batches)


if __name__ == "__main__":
    auto_cli(train, as_positional=False)
