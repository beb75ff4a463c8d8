"""A widened version of some of a model's tensors, computed next to the model and put in place at once.

Nothing of the model changes before :meth:`Draft.commit`, so that an expansion that is refused half-way leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.expansion.parts import Mirror, part_of
from fpe_lightning.expansion.teachers import Teacher
from fpe_lightning.sites.attributes import changed_values
from fpe_lightning.sites.site import Axis, Site
from fpe_lightning.sparse.exchange import parameter_like
from fpe_lightning.sparse.masked import mask_of, set_mask
from fpe_lightning.sparse.record import RECORD, Record, Split, record_of


class Draft:
    """The tensors and integers of ``model`` that an expansion changes.

    Args:
        model: The model; it stays untouched until :meth:`commit`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, DraftTensor] = {}
        self.widened: list[tuple[Site, int]] = []
        """The sites whose integers grow, each with its number of children."""

    def __getitem__(self, qualified_name: str) -> DraftTensor:
        """The draft of one parameter or buffer, made on first use."""
        if qualified_name not in self.tensors:
            owner, _, name = qualified_name.rpartition(".")
            module = self.model.get_submodule(owner)
            # Out of the dicts, as a parametrization may compute the attribute of this name.
            tensor: Tensor | None = module._parameters.get(name)
            mask = mask_of(module, name)
            if tensor is None:
                tensor = module._buffers[name]
            assert tensor is not None
            self.tensors[qualified_name] = DraftTensor(owner, name, tensor, tensor.detach(), mask)
        return self.tensors[qualified_name]

    def widen(self, axis: Axis, alpha: int) -> Split:
        """Repeat the units of one axis ``alpha`` times, masks included, and return where they now stand."""
        draft = self[axis.parameter]
        # Which old entry each entry of the axis copies, after the splits so far and then after this one.
        source = draft.sources.get(axis.dim, torch.arange(draft.original.shape[axis.dim]))
        split = Split(axis.dim, draft.start(axis), axis.length, axis.run, alpha)
        index = split.index(len(source))
        draft.sources[axis.dim] = source[index]
        draft.splits.append(split)
        on_device = index.to(draft.value.device)
        draft.value = draft.value.index_select(axis.dim, on_device)
        if draft.mask is not None:
            draft.mask = draft.mask.index_select(axis.dim, on_device)
        return split

    def change(self) -> int:
        """How many more entries may be non-zero than before, over all tensors; 0 where the budget is kept."""
        total = 0
        for draft in self.tensors.values():
            # Buffers follow their layer, and are no part of the budget.
            if isinstance(draft.original, nn.Parameter):
                mask = mask_of(self.model.get_submodule(draft.owner), draft.name)
                total += draft.count() - (draft.original.numel() if mask is None else int(mask.count_nonzero()))
        return total

    def check_averages(self, averages: Iterable[Teacher]) -> None:
        """Check that copies have the structure of the model, or of the part that they copy, to change with it.

        Raises:
            ValueError: If one has another structure.
        """
        for average in averages:
            found = {name: tuple(tensor.shape) for name, tensor in _named_tensors(average.mirror())}
            for name, draft in self.tensors.items():
                inside = not average.student or name.startswith(f"{average.student}.")
                if inside and found.get(name) != tuple(draft.original.shape):
                    raise ValueError(
                        f"An average of the model has `{name}` of shape {found.get(name)}, and the model has "
                        f"{tuple(draft.original.shape)}: averages have to be made after the model's last split, or "
                        "split with it."
                    )

    def commit(
        self, models: Sequence[nn.Module], values: Sequence[Mapping[str, Tensor]]
    ) -> dict[nn.Parameter, nn.Parameter]:
        """Put everything in place; nothing is checked any more.

        Args:
            models: The model, then its averages.
            values: For each of them the parameters that a pruning rule gave values to, by name.

        Returns:
            The new parameter for each old one.
        """
        replaced: dict[nn.Parameter, nn.Parameter] = {}
        for model, own in zip(models, values, strict=True):
            replaced |= self._commit_into(model, own)
        return replaced

    @torch.no_grad()
    def _commit_into(self, model: nn.Module, values: Mapping[str, Tensor]) -> dict[nn.Parameter, nn.Parameter]:
        # The record first: some code pairs the buffers of two models by position.
        self._write_records(model)
        replaced: dict[nn.Parameter, nn.Parameter] = {}
        for name, draft in self.tensors.items():
            # A mirror holds one part of the model only, so that most owners are missing in it.
            module = None if draft.separate else part_of(model, draft.owner)
            if module is None:
                continue
            old = module._parameters.get(draft.name)
            if old is None:
                buffer = module._buffers[draft.name]
                assert buffer is not None
                module._buffers[draft.name] = draft.follow(buffer)
                continue
            # Each model brings its own values; places and masks are those of the draft.
            new = replaced[old] = parameter_like(old, draft.follow(old.detach()))
            # A rule that refits weights has the last word on the values.
            if name in values:
                new.copy_(values[name])
            # A split between the backward pass and the step loses no gradient.
            if old.grad is not None:
                new.grad = draft.follow(old.grad)
            module._parameters[draft.name] = new
            if draft.mask is not None:
                set_mask(module, draft.name, draft.mask)
        for name in values.keys() - self.tensors.keys():  # the bias of a layer that reads the children
            model.get_parameter(name).copy_(values[name])
        return replaced

    def _write_records(self, model: nn.Module) -> None:
        """Grow the integers, and add the splits to each module's record."""
        records: dict[str, Record] = {}

        def record(owner: str) -> Record:
            if owner not in records:
                records[owner] = record_of(model.get_submodule(owner)) or Record()
            return records[owner]

        for draft in self.tensors.values():
            if part_of(model, draft.owner) is None:
                continue
            # Shapes of the first split stay; later splits only add to the history.
            record(draft.owner).shapes.setdefault(draft.name, list(draft.original.shape))
            record(draft.owner).splits.setdefault(draft.name, []).extend(draft.splits)
        modules = {
            name: part for name, part in model.named_modules(remove_duplicate=False) if not isinstance(part, Mirror)
        }
        # `out_features` and the like, and integers of custom modules that a reshape reads.
        for (owner, name), after in changed_values(self.widened, modules).items():
            module = modules[owner]
            before = getattr(module, name)
            setattr(module, name, after)
            record(owner).attributes.setdefault(name, [plain(before), 0])[1] = plain(after)
        for owner, changed in records.items():
            module = model.get_submodule(owner)
            module.register_buffer(RECORD, changed.encode().to(_device(module)))


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def plain(value: Any) -> int | list[int]:
    """An integer or a sequence of them, as it is written into a record.

    Example:
        >>> plain((3, 4))
        [3, 4]
    """
    return int(value) if isinstance(value, int) else [int(entry) for entry in value]


def _device(module: nn.Module) -> torch.device:
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))
