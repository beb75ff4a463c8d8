"""WHAT goes, so that the number of non-zeros stays: pure functions of tensors, one object each."""

from fpe_lightning.pruning.discriminant import DiscriminantRefit as DiscriminantRefit
from fpe_lightning.pruning.magnitude import Magnitude as Magnitude
from fpe_lightning.pruning.pruning import FinalizingRule as FinalizingRule
from fpe_lightning.pruning.pruning import Pruning as Pruning
from fpe_lightning.pruning.pruning import PruningName as PruningName
from fpe_lightning.pruning.pruning import PruningRule as PruningRule
from fpe_lightning.pruning.pruning import SiteWeights as SiteWeights
from fpe_lightning.pruning.pruning import register_pruning as register_pruning
from fpe_lightning.pruning.pruning import resolve_pruning as resolve_pruning
