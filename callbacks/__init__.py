"""Your own callbacks, next to the callbacks of the library.

Name them in a config as ``callbacks.MyCallback``; ``class_path: callbacks.ChildrenReport`` is a worked example.
"""

from callbacks.children_report import ChildrenReport as ChildrenReport
from fpe_lightning.callbacks import ExpansionCallback as ExpansionCallback
from fpe_lightning.callbacks import InterferenceMonitor as InterferenceMonitor
from fpe_lightning.callbacks import RunSummary as RunSummary
from fpe_lightning.callbacks import SaturationTrigger as SaturationTrigger
from fpe_lightning.callbacks import TensorBoardReport as TensorBoardReport
