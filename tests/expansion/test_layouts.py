"""A split with ``layout="grouped"``: the budget in fact, and everything that holds for masks holds for blocks."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.interference import LayerState
from fpe_lightning.partitions import Contiguous, Partition, Random, Shared
from fpe_lightning.sparse import (
    GroupedConv2d,
    GroupedLinear,
    check_masks,
    dense_mask,
    parents_of,
    store,
    structure_of,
)

PARTITIONS = ("shared", Shared(groups=2), "contiguous", Contiguous(groups=4))
PRUNINGS = ("total", "incoming", "columns", "blocks")


def mlp() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(96, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers), torch.randn(5, 96)


def cnn() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(8 * 4, 4)]
    layers = [nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), *head]
    return nn.Sequential(*layers), torch.randn(3, 32, 6, 6)


class Gated(nn.Module):
    """A feed-forward network with a gate, as in today's transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.sigmoid(self.gate(x)) * self.up(x))


def gated() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Gated(), torch.randn(3, 7, 32)


MODELS = {"mlp": mlp, "cnn": cnn, "gated": gated}
CASES = [
    case
    for case in itertools.product(MODELS, PARTITIONS, PRUNINGS)
    # 32 outputs for 32 inputs: incoming weights alone cannot pay for the copies of outgoing ones
    if not (case[0] == "gated" and case[2] in ("incoming", "columns"))
]


def pruning(name: str) -> dict[str, str]:
    """The fields of an expansion: ``"blocks"`` partitions the outgoing weights and prunes columns."""
    return {"prune": "columns", "outgoing": "partition"} if name == "blocks" else {"prune": name}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def as_masked(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if structure_of(module) is not None:
            store(module)
    return twin


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize(("kind", "partition", "prune"), CASES)
def test_a_grouped_split_trains_like_its_masked_twin(kind: str, partition: str | Partition, prune: str) -> None:
    model, x = MODELS[kind]()
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, x)
    report = fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition=partition, **pruning(prune), layout="grouped"),
        optimizer=optimizer,
        example_inputs=x,
    )
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    assert any(isinstance(module, GroupedLinear | GroupedConv2d) for module in model.modules())
    twin = as_masked(model)
    twin_optimizer = torch.optim.AdamW(twin.parameters())
    plain_optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        torch.testing.assert_close(model(x), twin(x), atol=1e-4, rtol=1e-3)
        step(model, plain_optimizer, x)
        step(twin, twin_optimizer, x)
    check_masks(model)
    assert fpe.count_nonzeros(model) == report.nonzeros_before
    step(model, optimizer, x)  # the optimizer that was there before the split is still valid


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("prune", ["columns", "blocks"])
@pytest.mark.parametrize("alpha", [2, 4])
def test_structured_room_stores_the_nonzeros_and_nothing_else(
    partition: str | Partition, prune: str, alpha: int
) -> None:
    model, x = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, x)
    budget_before = sum(parameter.numel() for parameter in model.parameters())
    fpe.expand(
        model,
        fpe.Expansion(alpha=alpha, partition=partition, **pruning(prune), layout="grouped"),
        optimizer=optimizer,
        example_inputs=x,
        sites="0",
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == budget_before
    moments = sum(optimizer.state[parameter]["exp_avg"].numel() for parameter in model.parameters())
    assert moments == budget_before
    assert not any("fpe_mask" in name for name in model.state_dict())


@pytest.mark.parametrize("partition", [Shared(groups=4), Contiguous(groups=4)])
@pytest.mark.parametrize("alpha", [2, 4])
def test_outgoing_blocks_read_one_slice_each_and_every_input_by_many_groups(partition: str, alpha: int) -> None:
    model, x = mlp()
    fpe.expand(
        model,
        fpe.Expansion(alpha=alpha, partition=partition, prune="columns", outgoing="partition", layout="grouped"),
        example_inputs=x,
        sites="0",
    )
    outgoing = structure_of(model[3])
    assert outgoing is not None
    assert torch.equal(outgoing, torch.eye(alpha, dtype=torch.bool).repeat_interleave(16, dim=1))
    incoming = dense_mask(model[0])
    assert incoming is not None
    seen = incoming.view(alpha, 16, -1).any(1).float().mean(1)  # share of the inputs, by each stretch of outputs
    assert float(seen.min()) > {2: 0.85, 4: 0.55}[alpha], "groups of neurons join what one of them keeps apart"


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize(("kind", "partition", "prune"), CASES)
def test_any_model_loads_any_checkpoint(kind: str, partition: str | Partition, prune: str) -> None:
    wide, x = MODELS[kind]()
    dense_state = copy.deepcopy(wide.state_dict())
    fpe.expand(wide, fpe.Expansion(alpha=2, partition=partition, **pruning(prune), layout="grouped"), example_inputs=x)
    narrow, _ = MODELS[kind]()
    fpe.load_expanded_state_dict(narrow, wide.state_dict())
    assert torch.equal(narrow.eval()(x), wide.eval()(x))
    masked = as_masked(wide)
    fpe.load_expanded_state_dict(narrow, masked.state_dict())
    assert torch.equal(narrow.eval()(x), masked.eval()(x))
    fpe.load_expanded_state_dict(narrow, wide.state_dict())
    assert torch.equal(narrow.eval()(x), wide.eval()(x))
    fpe.load_expanded_state_dict(wide, dense_state)
    assert type(wide) is type(narrow)
    assert not any(structure_of(module) is not None for module in wide.modules())
    assert all(torch.equal(wide.state_dict()[key], value) for key, value in dense_state.items())


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("prune", ["columns", "blocks"])
def test_a_second_split_of_blocks_is_blocks_again(partition: str | Partition, prune: str) -> None:
    model, x = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    before = fpe.count_nonzeros(model)
    for split in range(2):
        step(model, optimizer, x)
        fpe.expand(
            model,
            fpe.Expansion(alpha=2, partition=partition, **pruning(prune), layout="grouped"),
            optimizer=optimizer,
            example_inputs=x,
            sites="0",
        )
        assert isinstance(model[0], GroupedLinear)
        assert fpe.count_nonzeros(model) == before, split
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    assert model[0].out_features == 64
    assert torch.equal(parents_of(model[0]).bincount(), torch.full((16,), 4))
    step(model, optimizer, x)


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize(
    ("prune", "why"),
    [("total", 'or layout="masked" where earlier splits left few'), ("columns", "too little is left")],
)
def test_splits_until_no_inputs_are_left_end_in_a_sentence(prune: str, why: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), torch.randn(4, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    message = ""
    while not message:
        step(model, optimizer, x)
        before, held = copy.deepcopy(model.state_dict()), list(model.parameters())
        try:
            fpe.expand(
                model,
                fpe.Expansion(alpha=2, partition=Shared(groups=2), **pruning(prune), layout="grouped"),
                optimizer=optimizer,
                example_inputs=x,
            )
        except ValueError as error:
            message = str(error)
    assert why in message
    assert isinstance(model[0], GroupedLinear)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(now is then for now, then in zip(model.parameters(), held, strict=True))
    step(model, optimizer, x)


def test_copies_are_grouped_with_their_model() -> None:
    model, x = mlp()
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(2):
        fpe.expand(
            model,
            fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"),
            example_inputs=x,
            sites="0",
            averages=[average.module],
        )
        average.update_parameters(model)
        assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
        assert list(average.module.state_dict()) == list(model.state_dict())
    assert isinstance(average.module[0], GroupedLinear)


def test_a_broken_structure_in_a_checkpoint_is_named() -> None:
    wide, x = mlp()
    fpe.expand(
        wide, fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"), example_inputs=x
    )
    state = wide.state_dict()
    state["0.fpe_blocks"] = ~state["0.fpe_blocks"]
    with pytest.raises(ValueError, match=r"checkpoint is broken: `0\.weight` has shape .*, but its record says"):
        fpe.load_expanded_state_dict(mlp()[0], state)


def test_sites_of_a_grouped_model_are_those_of_its_masked_twin() -> None:
    model, x = mlp()
    fpe.expand(
        model, fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"), example_inputs=x
    )
    weight = model[0].weight
    assert fpe.find_sites(model, x) == fpe.find_sites(as_masked(model), x)
    assert model[0].weight is weight


def test_masked_and_grouped_keep_the_same_weights() -> None:
    outputs = []
    for layout in ("masked", "grouped"):
        model, x = mlp()
        fpe.expand(
            model,
            fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout=layout),
            example_inputs=x,
            sites="0",
        )
        outputs.append(model.eval()(x))
    torch.testing.assert_close(*outputs)


def test_interference_sees_the_weight_and_not_its_storage() -> None:
    model, x = mlp()
    fpe.expand(
        model, fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"), example_inputs=x
    )
    ours, theirs = LayerState.of(model[0]), LayerState.of(as_masked(model)[0])
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.parents, theirs.parents)


def refused(
    partition: str | Partition,
    optimizer: type[torch.optim.Optimizer],
    alpha: int = 2,
    prune: str = "total",
    sites: str | None = None,
) -> str:
    """The message of a split that is refused, after a check that nothing changed."""
    model, x = mlp()
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition="shared", prune="columns", layout="grouped"),
        example_inputs=x,
        sites="0",
    )
    optimizers = optimizer(model.parameters())
    step(model, optimizers, x)
    state, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    held = dict(optimizers.state)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the caller matches the message
        fpe.expand(
            model,
            fpe.Expansion(alpha=alpha, partition=partition, layout="grouped", **pruning(prune)),
            optimizer=optimizers,
            example_inputs=x,
            sites=sites,
        )
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert all(optimizers.state[parameter] is entry for parameter, entry in held.items())
    return str(error.value)


def each_its_own(weight: Tensor, alive: Tensor, alpha: int, generator: torch.Generator) -> Tensor:
    """A draw for each neuron, from outside of the package."""
    return Random()(weight, alive, alpha, generator)


def everything(weight: Tensor, alive: Tensor, alpha: int, generator: torch.Generator) -> Tensor:
    """Every child inherits all inputs, a partition that is none."""
    return alive.unsqueeze(1).expand(-1, alpha, -1).clone()


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
def test_refusals_are_one_sentence_and_change_nothing() -> None:
    assert "with Random() each neuron has its own: use partition=" in refused("random", torch.optim.AdamW)
    assert "use a partition that neurons share" in refused(each_its_own, torch.optim.AdamW)
    assert "Adafactor keeps state of rows and columns" in refused("shared", torch.optim.Adafactor, sites="3")
    assert "Cannot remove" in refused("shared", torch.optim.AdamW, prune="columns", alpha=8)
    assert "some would get none" in refused("shared", torch.optim.AdamW, prune="blocks", alpha=8)
    assert "every block reads every input" in refused(everything, torch.optim.AdamW, sites="3")


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
def test_a_convolution_one_block_of_which_reads_nothing_is_refused() -> None:
    model, x = cnn()

    def lazy(weight: Tensor, alive: Tensor, alpha: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(alive.shape, dtype=torch.int64)  # the first child reads everything

    with pytest.raises(
        ValueError, match=r"`0\.weight` cannot be stored in blocks: some block of channels reads no inp"
    ):
        fpe.expand(model, fpe.Expansion(alpha=2, partition=lazy, prune="total", layout="grouped"), example_inputs=x)


@pytest.mark.parametrize("name", ["weight_inputs", "weight_mask", "plan"])
def test_a_users_own_attributes_stay_next_to_blocks(name: str) -> None:
    model, x = mlp()
    setattr(model[0], name, "mine")
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="total", layout="grouped"),
        example_inputs=x,
        sites="0",
    )
    assert isinstance(model[0], GroupedLinear)
    assert getattr(model[0], name) == "mine"
    step(model, torch.optim.AdamW(model.parameters()), x)
    check_masks(model)


def test_blocks_that_a_model_cannot_hold_are_named() -> None:
    wide, x = mlp()
    fpe.expand(
        wide, fpe.Expansion(alpha=2, partition="shared", prune="columns", layout="grouped"), example_inputs=x, sites="0"
    )

    class OwnLinear(nn.Linear):
        pass

    narrow, _ = mlp()
    narrow[0].__class__ = OwnLinear
    with pytest.raises(
        ValueError, match=r"`0\.weight` in blocks, which this model cannot: there is no grouped form of O"
    ):
        fpe.load_expanded_state_dict(narrow, wide.state_dict())


def test_torchs_own_encoder_layer_stays_masked() -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match=r"nn\.TransformerEncoderLayer reads the weight without calling the layer"):
        fpe.expand(
            layer,
            fpe.Expansion(alpha=2, partition="shared", prune="columns", outgoing="partition", layout="grouped"),
            example_inputs=torch.randn(2, 3, 32),
        )
