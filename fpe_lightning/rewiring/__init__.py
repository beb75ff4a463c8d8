"""How masks move while the number of non-zeros stays: a wide and sparse start, and updates that drop and grow."""

from fpe_lightning.rewiring.allocation import ALLOCATIONS as ALLOCATIONS
from fpe_lightning.rewiring.gradients import GradientSums as GradientSums
from fpe_lightning.rewiring.gradients import dense_gradients as dense_gradients
from fpe_lightning.rewiring.report import RewireReport as RewireReport
from fpe_lightning.rewiring.sparsify import sparsify as sparsify
from fpe_lightning.rewiring.update import rewire as rewire
from fpe_lightning.rewiring.weights import Weight as Weight
from fpe_lightning.rewiring.weights import movable_weights as movable_weights
