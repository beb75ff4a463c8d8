"""LightningModules that wrap any network."""
