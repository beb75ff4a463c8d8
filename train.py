"""Train, validate, test and predict: ``python train.py fit --config configs/clip_probe.yaml``."""

import sys

from fpe_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
