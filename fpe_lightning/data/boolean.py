"""The Boolean task: is a formula in disjunctive normal form satisfied?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Coding = Literal["signs", "bits"]
Positives = Literal["uniform", "one_clause"]


@dataclass(frozen=True)
class DNFTask:
    """A formula of disjoint clauses of positive literals, with samples of it.

    Attributes:
        groups: The inputs of each clause; the formula is true when all inputs of at least one clause are true.
        train: Inputs ``(n, inputs)`` float32 and targets ``(n,)`` bool.
        val: The same, other samples.
        test: The same, other samples.
    """

    groups: tuple[tuple[int, ...], ...]
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def dnf_task(
    clauses: int = 8,
    literals: int = 3,
    inputs: int = 24,
    train: int = 2048,
    val: int = 2048,
    test: int = 4096,
    coding: Coding = "signs",
    positives: Positives = "uniform",
    seed: int = 0,
) -> DNFTask:
    """Draw a formula and its samples: half unsatisfying, half satisfying assignments (one more when the number is odd).

    The defaults are the regime that comes nearest to the figures of the paper, which gives none of these sizes.

    Args:
        clauses: Number of clauses.
        literals: Inputs of a clause; no input belongs to two clauses.
        inputs: Number of inputs; those outside all clauses do not matter.
        train: Number of training samples.
        val: Number of validation samples.
        test: Number of test samples.
        coding: ``"signs"`` codes false and true as -1 and +1, ``"bits"`` as 0 and 1.
        positives: Satisfying assignments are drawn uniformly from all of them (``"uniform"``), or from those in which
            exactly one clause is true (``"one_clause"``).
        seed: Decides the clauses and all samples. A part's samples do not depend on the sizes of the other parts.

    Returns:
        The formula and its samples.

    Raises:
        ValueError: If the clauses do not fit into the inputs, or a size or name is not possible.

    Example:
        >>> task = dnf_task(clauses=2, literals=2, inputs=4, train=6)
        >>> inputs, targets = task.train
        >>> satisfied = torch.stack([(inputs[:, list(group)] > 0).all(dim=1) for group in task.groups]).any(dim=0)
        >>> torch.equal(satisfied, targets), int(targets.sum())
        (True, 3)
    """
    if clauses < 1 or not 1 <= literals <= 62 or clauses * literals > inputs:
        raise ValueError(
            f"{clauses} disjoint clauses of {literals} literals do not fit into {inputs} inputs; take at least "
            "1 clause, 1 to 62 literals (a pattern of them is one int64) and `inputs >= clauses * literals`."
        )
    sizes = {"train": train, "val": val, "test": test}
    if small := [f"{part}={size}" for part, size in sizes.items() if size < 2]:
        raise ValueError(f"Each part needs a sample of both kinds, so at least 2; found {', '.join(small)}.")
    if coding not in ("signs", "bits"):
        raise ValueError(f"`coding` has to be 'signs' (-1/+1) or 'bits' (0/1), found {coding!r}.")
    if positives not in ("uniform", "one_clause"):
        raise ValueError(f"`positives` has to be 'uniform' or 'one_clause', found {positives!r}.")

    seeds = np.random.SeedSequence(seed).generate_state(4, np.uint64)
    generators = [torch.Generator().manual_seed(int(mixed)) for mixed in seeds]
    used = torch.randperm(inputs, generator=generators[0])[: clauses * literals]
    members = used.view(clauses, literals).sort().values
    parts = []
    for size, generator in zip(sizes.values(), generators[1:], strict=True):
        targets = torch.randperm(size, generator=generator) < (size + 1) // 2
        bits = sample_assignments(members, inputs, targets, positives, generator)
        parts.append((bits.float() * 2 - 1 if coding == "signs" else bits.float(), targets))
    return DNFTask(tuple(tuple(row) for row in members.tolist()), *parts)


def sample_assignments(
    members: Tensor, inputs: int, targets: Tensor, positives: Positives, generator: torch.Generator
) -> Tensor:
    """Draw assignments uniformly among those that give the formula the wanted value, without rejection.

    Clauses are disjoint, so an assignment that makes the formula false is an independent choice, for every clause, of
    one of its ``2^k - 1`` patterns that are not all true. An assignment that makes it true has a first true clause
    ``j``: the clauses before it are chosen as above, those after it freely. There are ``(2^k - 1)^j * 2^(k (m-1-j))``
    such assignments times a constant, so drawing ``j`` in this proportion makes every assignment equally likely.

    Args:
        members: ``(clauses, literals)`` int64, the inputs of each clause.
        inputs: Number of inputs.
        targets: ``(n,)`` bool, the wanted value of the formula for each sample.
        positives: As for :func:`dnf_task`.
        generator: Source of randomness.

    Returns:
        ``(n, inputs)`` bool.
    """
    (clauses, literals), n = members.shape, len(targets)
    patterns, everything = 2**literals, torch.arange(clauses)
    probability = torch.ones(clauses) if positives == "one_clause" else (1 - 1 / patterns) ** everything.double()
    first = torch.multinomial(probability, n, replacement=True, generator=generator)
    first = torch.where(targets, first, clauses)[:, None]
    free = (everything > first) if positives == "uniform" else torch.zeros(n, clauses, dtype=torch.bool)

    # pattern number 2^k - 1 is the one in which all literals are true
    failing = torch.randint(patterns - 1, (n, clauses), generator=generator)
    anything = torch.randint(patterns, (n, clauses), generator=generator)
    pattern = torch.where(free, anything, failing).where(everything != first, patterns - 1)

    bits = torch.randint(2, (n, inputs), generator=generator, dtype=torch.bool)
    bits[:, members.flatten()] = (pattern[:, :, None] >> torch.arange(literals) & 1).bool().flatten(1)
    return bits
