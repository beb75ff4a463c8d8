"""One sentence for a mistake in a config or on the command line, with the word that was probably meant."""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
import sys
from collections.abc import Iterable

# How jsonargparse says that it does not know a key; the first to match is the innermost in its nested messages.
REJECTIONS = (
    re.compile(r"(?P<owner>Group) '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'"),
    re.compile(r"Subcommand '\w+' does not accept option '(?P<key>[\w.]+)'"),
    re.compile(r"Option '(?P<key>[\w.]+)' is not accepted"),
    re.compile(r"unrecognized arguments: -*(?P<key>[\w.]+)"),
    re.compile(r"argument (?P<owner>subcommand): invalid choice: '(?P<key>[^']*)'"),
    re.compile(r"(?P<owner>module) '(?P<group>[\w.]+)' has no attribute '(?P<key>\w+)'"),
    re.compile(
        r"Parser key \"(?P<group>[\w.]+)\":\s+Expected a typing\.(?P<owner>Literal)\[(?P<choices>[^]]*)\]\. "
        r"Got value: (?P<key>\S+)"
    ),
    re.compile(r"Expected a (?P<owner>dot import) path string: (?P<key>\w+)$", re.MULTILINE),
)


def unknown_key(message: str, known: Iterable[str]) -> str | None:
    """Turn a parser's message about an unknown key, value or class into one sentence; None for any other message.

    Args:
        message: The message of jsonargparse.
        known: Keys and subcommands of the parser; where the message names a class, its arguments are looked at instead.

    Example:
        >>> unknown_key("Problem with given class_path 'torch.nn.Linear': Option 'bais' is not accepted", [])
        'Unknown key `bais` for torch.nn.Linear. Did you mean `bias`?'
        >>> unknown_key("Group 'trainer' does not accept option 'max_epoch'", ["trainer.max_epochs"])
        'Unknown key `trainer.max_epoch`. Did you mean `trainer.max_epochs`?'
    """
    found = next(filter(None, (pattern.search(message) for pattern in REJECTIONS)), None)
    if found is None:
        return None
    parts = found.groupdict()
    owner, key = parts.get("owner"), parts["key"]
    if owner == "subcommand":
        return _sentence("subcommand", key, known)
    if owner == "module":
        return _sentence("class", key, dir(pydoc.locate(parts["group"])), f" in {parts['group']}")
    if owner == "dot import":
        return _sentence("class", key, _classes())
    if owner == "Literal":
        return _sentence("value", key, re.findall(r"'([^']*)'", parts["choices"]), f" for `{parts['group']}`")
    class_path = _class_of(message, found)
    if class_path is None:
        return _sentence("key", ".".join(filter(None, (parts.get("group"), key))), known)
    # A key of a nested class may be spelled with the place where its arguments stand in the file.
    return _sentence("key", key.split("init_args.")[-1], arguments_of(class_path), f" for {class_path}")


def refusal(message: str) -> str:
    """The one reason that matters in a parser's message, which lists why a value is none of several types.

    Example:
        >>> refusal('Parser key "a": Does not validate. Errors: - MLP needs a width. Got value: 0 - Expected x')
        '`a`: MLP needs a width.'
        >>> refusal('Parser key "a": Does not validate. Errors: - Expected an int. Got value: x - Expected y')
        '`a` cannot be x: Expected an int.'
    """
    reasons = message.rpartition("Errors:")[2]
    if reasons == message:
        return message
    reason = re.split(r" - |(?:Got|Given) value", reasons.strip().removeprefix("- "))[0].strip()
    # Keys of nested classes follow those of the classes around them; the innermost is the one that was set.
    keys = re.findall(r'Parser key "([\w.]+)"', message[: len(message) - len(reasons)])
    value = re.search(r"(?:Got|Given) value: (\S+)", reasons)
    name = f"`{keys[-1]}`" if keys else "A value"
    if reason.startswith("Import path") and value:
        reason = f"{value.group(1)}: {reason}"
    if not reason.startswith("Expected"):
        return f"{name}: {reason}" if keys else reason
    return f"{name} cannot be {value.group(1) if value else 'this'}: {reason.rstrip('.')}."


def _sentence(what: str, key: str, known: Iterable[str], where: str = "") -> str:
    choices = list(known)
    if key in choices:
        return f"`{key}` has to come after the subcommand."
    nearest = difflib.get_close_matches(key, choices, n=1)
    root, dot, rest = key.partition(".")
    if not nearest and dot:
        # The words after the first may belong to a class, whose arguments are no keys of the parser.
        roots = difflib.get_close_matches(root, {choice.partition(".")[0] for choice in choices} - {root}, n=1)
        nearest = [f"{name}.{rest}" for name in roots]
    return f"Unknown {what} `{key}`{where}." + (f" Did you mean `{nearest[0]}`?" if nearest else "")


def _classes() -> list[str]:
    """Classes that go by their short names: those of this package and of Lightning's callbacks, where imported."""
    rooms = [
        room for name, room in sys.modules.items() if name.startswith(("fpe_lightning", "lightning.pytorch.callb"))
    ]
    return sorted({name for room in rooms for name, _ in inspect.getmembers(room, inspect.isclass)})


def _class_of(message: str, found: re.Match[str]) -> str | None:
    """The class whose argument was rejected: named last before it, or, for a callable, after it in the same line."""
    before = re.findall(r"class_path '([\w.]+)'", message[: found.start()])
    after = re.match(r"\. Got value: Namespace\(class_path='([\w.]+)'", message[found.end() :])
    return after.group(1) if after else (before[-1] if before else None)


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class, and of those of its bases to which it passes ``**kwargs``.

    Example:
        >>> arguments_of("fpe_lightning.Blocks")[-2:]
        ['layout', 'groups']
    """
    found = pydoc.locate(class_path)
    names: list[str] = []
    for owner in inspect.getmro(found) if inspect.isclass(found) else [found]:
        parameters = inspect.signature(owner).parameters if callable(owner) and owner is not object else {}
        names += [name for name, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return names
