"""Networks in a folder: ``config.json`` with the arguments, ``model.safetensors`` with the weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import Self

from fpe_lightning.checkpoints.restore import load_expanded_state_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class SavedInFolder(nn.Module):
    """A network that remembers the arguments of its class, and is saved and loaded with them.

    The files have the names that the Hugging Face Hub knows, so a folder can be uploaded as it is, and a repository's
    name is loaded where ``huggingface_hub`` is installed (the extra ``template`` brings it). A network that was split
    is saved as wide as it is, and loads as wide as it was.

    Example:
        >>> import tempfile
        >>> from fpe_lightning.networks import MLP
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     MLP(8, 4, 2).save_pretrained(folder)
        ...     MLP.from_pretrained(folder).in_features
        8
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments; copies and pickles are made without any, and bring their own notes."""
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs)
        except TypeError:  # the constructor says what is wrong
            return made
        names = dict(bound.arguments)
        names.pop("self", None)
        made.__dict__["_arguments"] = {**names.pop("kwargs", {}), **names}
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the arguments and the weights.

        Args:
            folder: Where; it is made if it is missing.

        Raises:
            ValueError: If an argument cannot be written as JSON.
        """
        try:
            config = json.dumps({"class": type(self).__name__, **self._arguments}, indent=2)
        except TypeError as error:
            raise ValueError(f"An argument of {type(self).__name__} cannot be written as JSON: {error}.") from error
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(config + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Build the network of a folder, and load its weights.

        Args:
            folder: A folder that :meth:`save_pretrained` wrote, or the name of a repository of the Hub.

        Raises:
            ValueError: If a file is missing, or belongs to another class.
        """
        found = Path(folder)
        if not found.is_dir() and "/" in str(folder) and not found.exists():
            found = _from_hub(str(folder)) or found
        for name in (CONFIG, WEIGHTS):
            if not (found / name).is_file():
                raise ValueError(f"{folder} has no {name}; `save_pretrained` writes {CONFIG} and {WEIGHTS}.")
        config = json.loads((found / CONFIG).read_text())
        saved = config.pop("class", cls.__name__)
        if saved != cls.__name__:
            raise ValueError(f"{folder} holds a {saved}, and {cls.__name__}.from_pretrained was called.")
        network = cls(**config)
        load_expanded_state_dict(network, load_file(found / WEIGHTS))
        return network


def _from_hub(name: str) -> Path | None:
    """The two files of a repository, in the Hub's cache; None where they cannot be had."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception:  # the caller says which file is missing
        return None
