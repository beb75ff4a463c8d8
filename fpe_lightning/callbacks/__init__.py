"""WHEN a model expands: the only room that knows the Trainer."""

from fpe_lightning.callbacks.batch_norm import BatchNormReestimation as BatchNormReestimation
from fpe_lightning.callbacks.compare_with_parent import CompareWithParent as CompareWithParent
from fpe_lightning.callbacks.expansion import ExpansionCallback as ExpansionCallback
from fpe_lightning.callbacks.fsdp2.strategy import ExpandableModelParallelStrategy as ExpandableModelParallelStrategy
from fpe_lightning.callbacks.interference_monitor import InterferenceMonitor as InterferenceMonitor
from fpe_lightning.callbacks.recipe import two_splits as two_splits
from fpe_lightning.callbacks.rewire import Rewire as Rewire
from fpe_lightning.callbacks.run_summary import RunSummary as RunSummary
from fpe_lightning.callbacks.schedule import ExpansionTrigger as ExpansionTrigger
from fpe_lightning.callbacks.schedule import SaturationTrigger as SaturationTrigger
from fpe_lightning.callbacks.tensorboard_report import TensorBoardReport as TensorBoardReport
