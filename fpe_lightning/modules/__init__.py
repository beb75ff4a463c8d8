"""LightningModules that wrap any network."""

from fpe_lightning.modules.classifier import Classifier as Classifier
