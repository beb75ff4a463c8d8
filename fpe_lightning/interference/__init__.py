"""WHY an expansion helps: feature capacity, cosine similarity, collisions and coverage."""

import importlib
from typing import TYPE_CHECKING, Any

from fpe_lightning.interference.capacity import feature_capacity as feature_capacity
from fpe_lightning.interference.clauses import clause_collisions as clause_collisions
from fpe_lightning.interference.clauses import clause_coverage as clause_coverage
from fpe_lightning.interference.clauses import whole_clauses as whole_clauses
from fpe_lightning.interference.layer import LayerState as LayerState
from fpe_lightning.interference.layer import has_weight as has_weight
from fpe_lightning.interference.layer import was_split as was_split
from fpe_lightning.interference.similarity import mean_absolute_cosine_similarity as mean_absolute_cosine_similarity
from fpe_lightning.interference.similarity import mean_cosine_similarity as mean_cosine_similarity

if TYPE_CHECKING:
    from fpe_lightning.interference.metrics import ClauseCollisions as ClauseCollisions
    from fpe_lightning.interference.metrics import ClauseCoverage as ClauseCoverage
    from fpe_lightning.interference.metrics import FeatureCapacity as FeatureCapacity
    from fpe_lightning.interference.metrics import MeanAbsoluteCosineSimilarity as MeanAbsoluteCosineSimilarity
    from fpe_lightning.interference.metrics import MeanCosineSimilarity as MeanCosineSimilarity


_METRICS = (
    *("ClauseCollisions", "ClauseCoverage", "FeatureCapacity"),
    *("MeanAbsoluteCosineSimilarity", "MeanCosineSimilarity"),
)


def __getattr__(name: str) -> Any:
    """Import the metrics when one is asked for: torchmetrics takes a second, and the functions do without."""
    if name not in _METRICS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.metrics"), name)
