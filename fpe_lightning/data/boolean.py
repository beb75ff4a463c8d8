"""The Boolean task: tell whether an assignment satisfies a formula in disjunctive normal form."""

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
    """A formula of disjoint clauses of positive literals, with samples.

    Attributes:
        groups: The inputs of each clause; the formula is true if all inputs of at least one clause are true.
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
    """Draw a formula and its samples: half unsatisfying, half satisfying assignments (one more if the number is odd).

    The paper gives none of these sizes; the defaults come closest to its figures.

    Args:
        clauses: Number of clauses.
        literals: Inputs of a clause; no input belongs to two clauses.
        inputs: Number of inputs; inputs outside all clauses do not matter.
        train: Number of training samples.
        val: Number of validation samples.
        test: Number of test samples.
        coding: ``"signs"`` codes false and true as -1 and +1, ``"bits"`` as 0 and 1.
        positives: ``"uniform"`` draws satisfying assignments uniformly from all, ``"one_clause"`` from those in which
            exactly one clause is true.
        seed: Decides the clauses and all samples. The samples of a part do not depend on the sizes of the other parts.

    Returns:
        The formula and its samples.

    Raises:
        ValueError: If the clauses do not fit into the inputs, or a size or name is out of range.

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

    # One generator for the clauses and one for each part, so that the parts are independent.
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
    """Draw assignments uniformly among those with the wanted value of the formula, without rejection.

    Clauses are disjoint. So an assignment that makes the formula false chooses independently, for every clause, one of
    its ``2^k - 1`` patterns that are not all true. An assignment that makes it true has a first true clause ``j``: the
    clauses before ``j`` are chosen as above, the clauses after it freely. There are ``(2^k - 1)^j * 2^(k (m-1-j))``
    such assignments times a constant. Drawing ``j`` in this proportion makes every assignment equally likely.

    Args:
        members: ``(clauses, literals)`` int64, the inputs of each clause.
        inputs: Number of inputs.
        targets: ``(n,)`` bool, the wanted value of the formula for each sample.
        positives: ``"uniform"`` or ``"one_clause"``, as for :func:`dnf_task`.
        generator: Source of randomness.

    Returns:
        ``(n, inputs)`` bool.
    """
    (clauses, literals), n = members.shape, len(targets)
    patterns, everything = 2**literals, torch.arange(clauses)
    # The first true clause of each sample; samples with the target False have none, written as `clauses`.
    probability = torch.ones(clauses) if positives == "one_clause" else (1 - 1 / patterns) ** everything.double()
    first = torch.multinomial(probability, n, replacement=True, generator=generator)
    first = torch.where(targets, first, clauses)[:, None]
    free = (everything > first) if positives == "uniform" else torch.zeros(n, clauses, dtype=torch.bool)

    # A pattern is the number whose bits are its literals: 2^k - 1 has all literals true.
    failing = torch.randint(patterns - 1, (n, clauses), generator=generator)
    anything = torch.randint(patterns, (n, clauses), generator=generator)
    pattern = torch.where(free, anything, failing).where(everything != first, patterns - 1)

    # Inputs outside all clauses are free; each pattern is unpacked into the inputs of its clause.
    bits = torch.randint(2, (n, inputs), generator=generator, dtype=torch.bool)
    bits[:, members.flatten()] = (pattern[:, :, None] >> torch.arange(literals) & 1).bool().flatten(1)
    return bits
