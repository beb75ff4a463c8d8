"""WHAT goes, so that the number of non-zeros stays."""

from fpe_lightning.pruning.discriminant import DiscriminantRefit as DiscriminantRefit
