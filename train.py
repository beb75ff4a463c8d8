"""Train, validate, test and predict: ``python train.py fit --config configs/clip_probe.yaml``."""

from fpe_lightning.cli import CLI

if __name__ == "__main__":
    CLI()
