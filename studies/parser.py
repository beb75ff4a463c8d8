"""The parser of the command line, which answers bad input with one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from typing_extensions import override

from fpe_lightning.command_line import unknown_key
from fpe_lightning.expansion.config import BaseExpansion
from studies.arms import Arm
from studies.errors import StudyError

# In a config an arm and its expansion may be of any subclass.
set_parsing_settings(subclasses_enabled=[Arm, BaseExpansion])


class Parser(ArgumentParser):
    """A parser that answers bad input with one sentence."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [action.dest for action in self._actions]
        raise StudyError(unknown_key(message, known) or sentence_of(message))


def sentence_of(message: str) -> str:
    r"""The first of the innermost reasons in a parser's message, as one line.

    Example:
        >>> sentence_of("Does not validate\nErrors:\n  - Parser key 'a':\n      No arm\n  - Another\nGiven value: 3")
        "Parser key 'a': No arm"
    """
    head, *reasons = re.split(r"\n *- ", message.partition("\nGiven value")[0])
    inner = [each for each in reasons if "Does not validate" not in each]
    return " ".join((inner or [head])[0].split())


def check_keys(words: Sequence[str]) -> None:
    """Check that no mapping in the config files and options of a command line holds a key twice, such as an arm.

    Raises:
        StudyError: If one does; YAML itself would take the last.

    Example:
        >>> check_keys(["--arms={dense: Dense, dense: Split}"])
        Traceback (most recent call last):
        ...
        studies.errors.StudyError: 'dense' is given twice; give each key once.
    """
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        path = Path(value)
        try:
            text = path.read_text() if path.suffix in (".yaml", ".yml") and path.is_file() else value
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, OSError):
            continue  # the parser reports it
        for mapping in _mappings(root):
            keys = [key.value for key, _ in mapping.value]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise StudyError(f"{twice!r} is given twice; give each key once.")


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _mappings(each)
