"""Which operators are linear in the activations that enter them.

A width with nothing but such operators between its producers and its consumers is the rank of a factorised weight
(LoRA, bottlenecks without activation): its children could only repeat what the parent computes.
"""

from __future__ import annotations

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.rules_aggregate import AGGREGATES
from fpe_lightning.sites.tracing.rules_contract import CONTRACTIONS
from fpe_lightning.sites.tracing.rules_mixing import FOURIER
from fpe_lightning.sites.tracing.rules_norm import LINEAR_POOLS
from fpe_lightning.sites.tracing.rules_pointwise import FACTORIES
from fpe_lightning.sites.tracing.rules_shape import MOVES

OTHERS = (
    "mean sum cumsum add sub rsub neg __iadd__ __isub__ where masked_fill dropout native_dropout feature_dropout "
    "copy fill zero"
)
EXTREMES = frozenset({"scatter_reduce", "index_reduce", "segment_reduce"})
"""Linear or not by what they reduce with."""
LINEAR = FACTORIES.union(CONTRACTIONS, LINEAR_POOLS, MOVES, OTHERS.split(), FOURIER.split(), AGGREGATES - EXTREMES)
PRODUCTS = frozenset({"mul", "div", "lerp", "addcmul", "__imul__"})
"""Linear where at most one operand is an activation; a scale, a mask of noise or a number is none."""


def is_linear(call: Call) -> bool:
    """Whether an operator is linear in the activations that enter it."""
    if call.name in LINEAR or call.arguments.get("reduce") in ("sum", "mean"):
        return True
    activations = [t for t in call.tensors if t.dim() and not (call.tag(t).parameter or call.tag(t).filler)]
    return call.name in PRODUCTS and len(activations) < 2
