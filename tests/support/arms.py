"""Arms of the tests of studies, by the labels that the published tables use."""

from __future__ import annotations

import fpe_lightning as fpe
from fpe_lightning.partitions import Shared
from fpe_lightning.pruning import DiscriminantRefit
from studies.arms import Again, Arm, Dense, DropConnect, Larger, Split, WideSparse

KINDS: dict[str, Arm] = {
    "dense": Dense(),
    "random": Split(),
    "shared": Split(fpe.Paper(partition="shared")),
    "feature": Split(fpe.Paper(partition="feature")),
    "clause": Split(fpe.Paper(partition="clause")),
    "overlapping": Split(fpe.Paper(partition="overlapping")),
    "coactivation": Split(fpe.Paper(partition="coactivation")),
    "interaction": Split(fpe.Paper(partition="residual_interaction")),
    "wide_sparse": WideSparse(),
    "wide_sparse_even": WideSparse("even"),
    "wide_placed": WideSparse(placed="residual_interaction"),
    "constant_fan_in": WideSparse("fan_in"),
    "dropconnect": DropConnect(),
    "dense_larger": Larger(),
    "ensemble": Split(members=3),
}
"""One arm of each kind."""
INCOMING = fpe.Paper(prune="incoming")
ARMS: dict[str, Arm] = {
    **KINDS,
    "random_at_0": Split(at=0),
    "random_at_2": Split(at=2),
    "random_at_3": Split(at=3),
    "random_at_9": Split(at=9),
    "random_at_10": Split(at=10),
    "random_incoming": Split(INCOMING),
    "random_incoming_at_1": Split(INCOMING, at=1),
    "random_outgoing": Split(fpe.Paper(prune="outgoing")),
    "random_blocks": Split(fpe.Paper(prune="columns", outgoing="partition")),
    "random_global_at_1": Split(fpe.Paper(prune="global"), at=1),
    "interaction_global_at_1": Split(fpe.Paper(partition="residual_interaction", prune="global"), at=1),
    "random_redraw": Split(redraw=True),
    "random_reset": Split(fpe.Paper(optimizer_state="reset")),
    "random_then_3": Split(at=1, alpha=2, then=Again(3, fpe.Paper(prune=DiscriminantRefit(), optimizer_state="reset"))),
    "shared_of_4": Split(fpe.Paper(partition=Shared(groups=4))),
    "overlapping_incoming": Split(fpe.Paper(partition="overlapping", prune="incoming")),
    "interaction_at_0": Split(fpe.Paper(partition="residual_interaction"), at=0),
    "interaction_incoming": Split(fpe.Paper(partition="residual_interaction", prune="incoming")),
}


def arms(*labels: str) -> dict[str, Arm]:
    """Some of them, in this order."""
    return {label: ARMS[label] for label in labels}
