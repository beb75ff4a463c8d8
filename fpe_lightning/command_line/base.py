"""Config files that state their differences from another one, their base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

CLASS = {"class_path", "init_args", "dict_kwargs"}
"""Keys of an object in a config."""


def with_base(path: str | Path) -> str | None:
    """A config file as YAML, with its base under it; None where it has no ``base``.

    ``base`` names another file, relative to this one, which may have a base too. Mappings are merged key by key; any
    other value replaces that of the base, and so does an object of another ``class_path``. ``trainer.callbacks`` may be
    a mapping from class names to arguments: they change the callbacks of the base, a new name adds a callback, and
    null removes one.

    Args:
        path: A YAML file.

    Raises:
        ValueError: If there is no such base, bases form a circle, or there are no callbacks to change.
    """
    config = _read(Path(str(path)))
    return None if "base" not in config else yaml.safe_dump(_whole(Path(str(path)), ()), sort_keys=False)


def check_yaml(path: str | Path) -> None:
    """Refuse a file that holds no mapping in YAML; one that is missing is left to the parser.

    Raises:
        ValueError: Naming the file.
    """
    if not Path(path).is_file():
        return
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no config in YAML: {' '.join(str(error).split())}.") from error
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{path} is no config: it holds a {type(content).__name__}, and no keys with values.")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # the parser reports the fault
    return config if isinstance(config, dict) else {}


def _whole(path: Path, users: tuple[Path, ...]) -> dict[str, Any]:
    """The config of a file, with that of its base under it."""
    path = path.resolve()
    if path in users:
        raise ValueError(f"{path} is the base of itself: {' -> '.join(user.name for user in (*users, path))}.")
    config = _read(path)
    base = config.pop("base", None)
    if base is None:
        return config
    file = path.parent / str(base)
    if not file.is_file():
        raise ValueError(f"{path} has the base {base}, but there is no file {file}.")
    whole = _whole(file, (*users, path))
    changes = config.get("trainer", {}).get("callbacks")
    if isinstance(changes, dict):
        callbacks = whole.get("trainer", {}).get("callbacks", [])
        config["trainer"]["callbacks"] = change_callbacks(callbacks, changes)
    return merge(whole, config)


def merge(base: Any, change: Any) -> Any:
    """A change on top of a base.

    Example:
        >>> merge({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]})
        {'a': {'x': 1, 'y': 3}, 'b': [2]}
        >>> merge({"class_path": "MLP", "init_args": {"hidden": 8}}, {"class_path": "CNN"})
        {'class_path': 'CNN'}
    """
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    if "class_path" in base and (
        change.keys() - CLASS or change.get("class_path", base["class_path"]) != base["class_path"]
    ):
        return change
    return {**base, **{key: merge(base.get(key), value) for key, value in change.items()}}


def change_callbacks(callbacks: list[dict[str, Any]], changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a base after changes by class name.

    Example:
        >>> base = [{"class_path": "my.Split", "init_args": {"epoch": 1, "seed": 0}}, {"class_path": "my.Bar"}]
        >>> change_callbacks(base, {"Split": {"epoch": 2}, "Bar": None, "Timer": {}})
        [{'class_path': 'my.Split', 'init_args': {'epoch': 2, 'seed': 0}}, {'class_path': 'Timer', 'init_args': {}}]
    """
    found = copy.deepcopy(callbacks)
    for name, arguments in changes.items():
        places = [n for n, each in enumerate(found) if each["class_path"].split(".")[-1] == name.split(".")[-1]]
        if arguments is None and not places:
            raise ValueError(f"There is no callback {name} to leave out.")
        if arguments is None:
            del found[places[-1]]
        elif places:
            each = found[places[-1]]
            each["init_args"] = merge(each.get("init_args", {}), arguments)
        else:
            found.append({"class_path": name, "init_args": arguments})
    return found
