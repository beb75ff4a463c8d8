"""Probes on corrupted pictures, with wrong labels and few samples; and the calibration of their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.data.cache import open_cache
from fpe_lightning.data.encode import cache_embeddings, embedding_key
from fpe_lightning.data.encoder import load_encoder
from fpe_lightning.data.sources import LabelledImages, load_images
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.paths import default_cache_dir
from studies.clip_probe import Probe
from studies.corruptions import CorruptedImages, Corruption
from studies.findings import Findings
from studies.robustness_report import CLEAN, ERROR, findings
from studies.runs import Runs
from studies.setting import Moment
from studies.task import Part, Task


@dataclass(frozen=True)
class Robustness(Probe):
    """One setting of the study ``robustness``; a seed draws training samples and wrong labels too.

    Attributes:
        noise: Standard deviations of the noise in test pictures, as shares of the full range.
        blur: Those of the blur, in pixels.
        shift: Shifts, in whole pixels.
        pictures: That many test pictures are corrupted, chosen with the class shares of all; None takes all.
        label_noise: Share of the training samples whose label is replaced by another one, each equally likely.
    """

    noise: list[float] = field(default_factory=lambda: [0.1, 0.2])
    blur: list[float] = field(default_factory=lambda: [1.0, 2.0])
    shift: list[int] = field(default_factory=lambda: [1, 2])
    pictures: int | None = None
    label_noise: float = 0.0

    @override
    def check(self) -> None:
        """Check sizes, training, levels and shares.

        Raises:
            ValueError: If a number is out of range.

        Example:
            >>> Robustness(label_noise=0.4).check()
        """
        super().check()
        self.corruptions()
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"`label_noise` has to be at least 0 and below 1, found {self.label_noise}.")
        for name in ("pictures", "train_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"`{name}` has to be at least 1, found {size}.")

    def corruptions(self) -> tuple[Corruption, ...]:
        """The corruptions of test pictures, weakest first."""
        return (
            *(Corruption("noise", level) for level in self.noise),
            *(Corruption("blur", level) for level in self.blur),
            *(Corruption("shift", level) for level in self.shift),
        )

    @override
    def task(self, seed: int) -> Task:
        """The embeddings; each seed draws its own choice of samples and wrong labels."""
        where = self.dataset, self.encoder, self.pretrained, self.data_dir, self.download
        whole = replace(self, train_size=None, label_noise=0.0)
        task = super(Robustness, whole).task(seed)
        x, y = task.train
        if self.train_size is not None and self.train_size != len(y):
            chosen = stratified_choice(y, self.train_size, seed)
            x, y = x[chosen], y[chosen]
        others = _others(*where, self.corruptions(), self.pictures)
        return replace(task, train=(x, mislabelled(y, self.label_noise, task.classes, seed)), others=others)

    @property
    @override
    def measures(self) -> tuple[str, ...]:
        """Accuracy on the chosen pictures as they are and corrupted, then the calibration errors."""
        names = CLEAN, *(each.name for each in self.corruptions())
        return *names, *(ERROR + name for name in names)

    @override
    def observe(self, moment: Moment, networks: Sequence[nn.Module], task: Task) -> dict[str, float]:
        """Accuracy and expected calibration error on every set of test pictures."""
        if moment != "end":
            return {}
        right = {name: task.accuracy(networks, part) for name, part in task.others.items()}
        return right | {ERROR + name: task.calibration_error(networks, part) for name, part in task.others.items()}

    @override
    @classmethod
    def findings(cls, runs: Runs) -> Findings:
        """Accuracy and calibration under every corruption, and against wrong labels and numbers of samples."""
        return findings(runs)


def mislabelled(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Replace labels by other ones, each equally likely.

    Args:
        labels: ``(n,)`` int64 class numbers.
        share: In [0, 1): of the labels, rounded to whole ones.
        classes: Number of classes.
        seed: Decides which, and by what. A larger share replaces more labels, those of a smaller one in the same way.

    Returns:
        ``(n,)`` class numbers.

    Example:
        >>> int((mislabelled(torch.zeros(10, dtype=torch.long), 0.4, 3, seed=0) != 0).sum())
        4
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    steps = torch.randint(1, classes, labels.shape, generator=generator)
    wrong = order[: round(share * len(labels))]
    found = labels.clone()
    found[wrong] = (labels[wrong] + steps[wrong]) % classes
    return found


@lru_cache(maxsize=1)
def _others(
    dataset: str,
    encoder: str,
    pretrained: str | None,
    data_dir: str,
    download: bool,
    corruptions: tuple[Corruption, ...],
    pictures: int | None,
) -> dict[str, Part]:
    """Embeddings of chosen test pictures, as they are and corrupted; encoded into the cache once."""
    images, folder = load_images(dataset, data_dir, download).test, default_cache_dir()
    model = load_encoder(encoder, pretrained)

    def embedded(chosen: LabelledImages, split: str) -> Part:
        key = embedding_key(chosen, model, dataset, split, "float16")
        features, labels = open_cache(cache_embeddings(chosen, model, key, folder), key)
        return torch.from_numpy(features).float(), torch.from_numpy(labels)

    x, y = embedded(images, "test")
    chosen = torch.arange(len(y)) if pictures is None else stratified_choice(y, pictures, seed=0)
    found: dict[str, Part] = {CLEAN: (x[chosen], y[chosen])}
    for each in corruptions:
        found[each.name] = embedded(CorruptedImages(images, each, chosen.tolist()), f"test {each.name}")
    return found
