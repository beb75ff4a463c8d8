"""The studies by name. A new study is a subclass of Setting, a line here, and a config."""

from __future__ import annotations

import importlib

from fpe_lightning.registry import Registry
from studies.boolean import Regime
from studies.children import Children
from studies.clip_probe import Probe
from studies.errors import StudyError
from studies.interference import Interference
from studies.pictures import CNN, ViT
from studies.pixels import Pixels
from studies.rewiring import Rewiring
from studies.robustness import Robustness
from studies.setting import Setting

STUDIES = Registry[type[Setting]]("study")
"""The class of settings of each study: its data and its networks. Arms and values are in its config."""

for name, kind in {
    "boolean": Regime,
    "children": Children,
    "clip_probe": Probe,
    "cnn": CNN,
    "deep": Probe,
    "interference": Interference,
    "pixels": Pixels,
    "rewiring": Rewiring,
    "robustness": Robustness,
    "transformer": ViT,
}.items():
    STUDIES.register(name, kind)


def study_named(name: str) -> type[Setting]:
    """The settings of a study.

    Args:
        name: Of a study, or the import path of a subclass of :class:`~studies.setting.Setting`, which needs no line in
            this module.

    Raises:
        StudyError: If there is none.

    Example:
        >>> study_named("boolean") is study_named("studies.boolean.Regime")
        True
    """
    if "." not in name:
        try:
            return STUDIES.get(name)
        except ValueError as error:
            raise StudyError(str(error)) from error
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise StudyError(f"The study {name!r} cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Setting)):
        raise StudyError(f"{name!r} is no subclass of studies.setting.Setting, so it is no study.")
    return found
