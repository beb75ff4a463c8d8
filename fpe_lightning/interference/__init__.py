"""WHY an expansion helps: feature capacity, cosine similarity, collisions and coverage."""

from fpe_lightning.interference.capacity import FeatureCapacity, feature_capacity
from fpe_lightning.interference.clauses import (
    ClauseCollisions,
    ClauseCoverage,
    clause_collisions,
    clause_coverage,
    whole_clauses,
)
from fpe_lightning.interference.layer import LayerState, has_weight, was_split
from fpe_lightning.interference.similarity import (
    MeanAbsoluteCosineSimilarity,
    MeanCosineSimilarity,
    mean_absolute_cosine_similarity,
    mean_cosine_similarity,
)

__all__ = [
    "ClauseCollisions",
    "ClauseCoverage",
    "FeatureCapacity",
    "LayerState",
    "MeanAbsoluteCosineSimilarity",
    "MeanCosineSimilarity",
    "clause_collisions",
    "clause_coverage",
    "feature_capacity",
    "has_weight",
    "mean_absolute_cosine_similarity",
    "mean_cosine_similarity",
    "was_split",
    "whole_clauses",
]
