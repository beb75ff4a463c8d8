"""Widen a checkpoint file: stop a run, split its neurons in the file, and resume from the wider one.

It serves every strategy, also those that shard parameters and cannot be split while they train.
"""

from __future__ import annotations

import copy
import glob
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from fpe_lightning.checkpoints.optimizers import load_optimizers, optimizers_of, widened_states
from fpe_lightning.checkpoints.read import read_checkpoint, weights_in
from fpe_lightning.checkpoints.restore import restore_structure
from fpe_lightning.expansion.config import AnyExpansion, Data
from fpe_lightning.expansion.expand import expand, resolve_expansion
from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.sites.calls import sites_of_step
from fpe_lightning.sites.plain import from_plain
from fpe_lightning.sites.select import Names, check_found, sites_of
from fpe_lightning.sites.sensible import choose_sites
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.convert import stored_masked


def expand_checkpoint(
    path: str | Path,
    target: str | Path,
    module: nn.Module | type[nn.Module],
    expansion: AnyExpansion | None = None,
    *,
    alpha: int | None = None,
    seed: int | None = None,
    sites: Names | Sequence[Site] | None = None,
    exclude: Names | None = None,
    data: Data | None = None,
    example_inputs: Any = None,
    example_batch: Any = None,
    configure_optimizers: Callable[[Any], Any] | None = None,
    weights_only: bool = True,
) -> ExpansionReport:
    """Split the neurons of a checkpoint: weights, masks, optimizer states and averages of the weights, in a new file.

    The new file equals the checkpoint of an ``ExpansionCallback`` with the same options at this point,
    bit by bit; everything else in it (loops, schedulers, callbacks) is copied. To resume, pass the file as
    ``ckpt_path`` to a Trainer with an ``ExpansionCallback``, or inside of
    :func:`~fpe_lightning.checkpoints.loaders.expanded_checkpoints`. Splits that an ``ExpansionCallback`` of the resumed
    run has yet to make come on top.

    Args:
        path: A checkpoint of Lightning in one file, of any stage, or a file that holds a bare ``state_dict``, in any
            format of torch or as safetensors.
        target: The file to write; it must not exist yet, and appears only once it is whole. Its suffix
            ``.safetensors`` chooses that format, for a bare ``state_dict``.
        module: The module that the checkpoint belongs to, narrow or wide; it is copied. Or its class, which is built
            from the hyperparameters in the checkpoint.
        expansion: How to expand; see :func:`~fpe_lightning.expansion.expand.expand`, as for the arguments up to
            ``data``.
        alpha: See :func:`~fpe_lightning.expansion.expand.expand`.
        seed: See :func:`~fpe_lightning.expansion.expand.expand`.
        sites: See :func:`~fpe_lightning.expansion.expand.expand`; names are relative to ``module``.
        exclude: See :func:`~fpe_lightning.expansion.expand.expand`.
        data: See :func:`~fpe_lightning.expansion.expand.expand`.
        example_inputs: The inputs of the module's ``forward``. None takes its ``example_input_array``, or else what an
            ``ExpansionCallback`` noted in the checkpoint.
        example_batch: A batch as ``training_step`` takes it, for a LightningModule whose networks are found by looking
            at one step rather than at its ``forward``.
        configure_optimizers: Called with the module in place of its own ``configure_optimizers``, where that needs a
            Trainer or there is none; returns the same.
        weights_only: As in ``torch.load``; False also loads files that hold more than plain types, and runs code in
            them.

    Returns:
        Widths, fan-ins and non-zeros before and after.

    Raises:
        ValueError: If a file is missing, broken, of another kind, or already there; if the module or its optimizers do
            not fit the checkpoint; or if :func:`~fpe_lightning.expansion.expand.expand` refuses. No file is written.

    Example:
        >>> narrow = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> expand_checkpoint("no/such.ckpt", "wide.ckpt", narrow, example_inputs=torch.zeros(1, 64))
        Traceback (most recent call last):
        ...
        ValueError: There is no checkpoint at no/such.ckpt; check the path.
    """
    expansion = resolve_expansion(expansion, alpha, seed)
    path, target = Path(path), Path(target)
    checkpoint = read_checkpoint(path, weights_only)
    # All that can be refused early is, before a long computation.
    if target.exists():
        raise ValueError(f"{target} exists already; choose another name for the widened checkpoint.")
    if target.suffix == ".safetensors" and not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(f"{path} holds more than weights, which {target.name} cannot; choose a name with `.ckpt`.")
    if not target.parent.is_dir():
        raise ValueError(f"There is no directory {target.parent} to write {target.name} into; create it first.")
    model = _model(module, checkpoint)
    state = weights_in(checkpoint, path)
    missing = _load(model, state, path)
    if sites is None or isinstance(sites, str) or not any(isinstance(site, Site) for site in sites):
        mapping = expansion if isinstance(expansion, Mapping) else {"*": expansion}
        found = _find(model, checkpoint, example_inputs, example_batch)
        sites = [site for site, _ in choose_sites(model, found, mapping, cast("Names | None", sites), exclude)[0]]
        exclude = None
    # From here on the steps are those of a split in training: same precision, averages and optimizer states.
    _take_dtypes(model, state)
    known, held = set(model.state_dict()), list(_averages_in(checkpoint, state))
    averages = [_average(model, each, prefix) for each, prefix in held]
    saved = checkpoint.get("optimizer_states") or []
    optimizers = optimizers_of(model, configure_optimizers) if saved else []
    load_optimizers(model, optimizers, saved)
    report = expand(
        model,
        expansion,
        sites=sites,
        exclude=exclude,
        optimizer=optimizers,
        averages=averages,
        data=data,
    )
    for each, prefix, wide in [
        (state, "", model),
        *((*entry, wide) for entry, wide in zip(held, averages, strict=True)),
    ]:
        _refill(each, wide, prefix, known, missing)
    if saved:
        checkpoint["optimizer_states"] = widened_states(model, optimizers, saved)
    _write(checkpoint, target)
    return report


def _model(module: nn.Module | type[nn.Module], checkpoint: Mapping[str, Any]) -> nn.Module:
    """A copy of the module, or a new one of the class."""
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    try:
        load = getattr(module, "load_from_checkpoint", None)
        if load is None:
            return module()
        # Lightning knows how hyperparameters were saved; weights are another matter, as their shapes may differ.
        bare = io.BytesIO()
        torch.save({**checkpoint, "state_dict": {}, "optimizer_states": [], "callbacks": {}}, bare)
        bare.seek(0)
        built: nn.Module = load(bare, map_location="cpu", strict=False)
        return built
    except Exception as error:  # whatever a user's constructor raises
        raise ValueError(
            f"{module.__name__} cannot be built from the hyperparameters of the checkpoint ({error}); pass an instance."
        ) from error


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> set[str]:
    """Load weights of any stage; return the names that a module which is not strict misses in them."""
    strict = getattr(model, "strict_loading", True)
    try:
        restore_structure(model, state)
        return set(model.load_state_dict(state, strict=strict).missing_keys)
    except (ValueError, RuntimeError) as error:
        lines = str(error).splitlines()
        raise ValueError(f"{path} does not fit {type(model).__name__}: {(lines[1:] or lines)[0].strip()}") from error


def _find(model: nn.Module, checkpoint: Mapping[str, Any], example_inputs: Any, example_batch: Any) -> list[Site]:
    """The sites of the model, from whatever is known of its inputs."""
    if example_batch is not None:
        return sites_of_step(model, example_batch)
    if example_inputs is None and getattr(model, "example_input_array", None) is None:
        states = (state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict))
        for found in (from_plain(state.get("widths"), model) for state in states):
            if found is not None:
                check_found(model, found)
                return list(found.sites)
    with stored_masked(model):
        return sites_of(model, example_inputs)


def _take_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compute in the precision that was trained in, as a split while training does."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in state and state[name].dtype != tensor.dtype:
                tensor.data = state[name].clone()


def _averages_in(value: Any, state: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every other ``state_dict`` of the same module in a checkpoint, such as averages, and the prefix of its names."""
    if isinstance(value, dict) and value is not state:
        for prefix in ("", "module."):
            if all(isinstance(value.get(prefix + name), Tensor) for name in state):
                yield value, prefix
                return
        for each in value.values():
            yield from _averages_in(each, state)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _averages_in(each, state)


def _average(model: nn.Module, state: Mapping[str, Tensor], prefix: str) -> nn.Module:
    # A module of the same structure, narrow or wide, that holds the values of the average.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in twin.state_dict(keep_vars=True).items():
            if prefix + name in state:
                tensor.data = state[prefix + name].clone()
    return twin


def _refill(state: dict[str, Any], model: nn.Module, prefix: str, known: set[str], missing: set[str]) -> None:
    """Put the weights of a model in the place of those that it was loaded from, by their names then; others stay."""
    wide = {prefix + name: tensor for name, tensor in model.state_dict().items() if name not in missing}
    old = {prefix + name for name in known}
    others = {name: value for name, value in state.items() if name not in old}
    state.clear()
    state.update(others | wide)


def _write(checkpoint: Mapping[str, Any], target: Path) -> None:
    """Write a file next to the target and link it to the target's name, which fails if that name exists by then."""
    _remove_strays(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.{os.getpid()}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if target.suffix == ".safetensors":
                file.write(save({key: tensor.contiguous() for key, tensor in checkpoint.items()}))
            else:
                torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        # A link fails where the name was taken meanwhile; a rename would overwrite it.
        os.link(name, target)
    except FileExistsError as error:
        raise ValueError(f"{target} exists already; choose another name for the widened checkpoint.") from error
    except (OSError, RuntimeError, SafetensorError) as error:  # torch turns a full disk into an error of its own
        raise ValueError(
            f"{target} could not be written ({' '.join(str(error).split())[:200]}); no file is left: free "
            "some space, or choose another directory."
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _remove_strays(target: Path) -> None:
    """Remove what processes left behind that were killed while they wrote this target."""
    for stray in target.parent.glob(f".{glob.escape(target.name)}.*"):
        owner = stray.name.removeprefix(f".{target.name}.").partition(".")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            stray.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
