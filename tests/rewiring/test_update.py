"""One update of the masks: exact counts, the rule of what moves, and what follows."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.rewiring import dense_gradients, rewire, sparsify
from fpe_lightning.sparse import check_masks, dense_mask, dense_weight, mask_of, set_mask, store
from tests.support.nets import cnn, mlp, snapshot, train


def dense(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random gradients in the shape of each dense weight."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.weight": torch.randn(dense_weight(module).shape, generator=generator)
        for name, module in model.named_modules()
        if dense_mask(module) is not None
    }


def split(layout: str = "masked", alpha: int = 4, seed: int = 0) -> nn.Sequential:
    model = mlp(32, 6, 3, seed=seed)
    expansion = fpe.Paper(alpha=alpha, prune="incoming", layout=layout)
    fpe.expand(model, expansion, example_inputs=torch.randn(2, 32))
    return model


def sparse(density: float = 0.4) -> nn.Sequential:
    model = mlp(32, 12, 5)
    sparsify(model, density)
    return model


class TestTheRule:
    """What moves where."""

    def test_the_smallest_go_and_the_largest_gradients_come(self) -> None:
        layer = nn.Linear(4, 1, bias=False)
        layer.weight.data = torch.tensor([[0.1, 0.5, 0.0, 0.0]])
        set_mask(layer, "weight", torch.tensor([[True, True, False, False]]))
        report = rewire(layer, {"weight": torch.tensor([[9.0, 9.0, 1.0, -2.0]])}, fraction=0.5)
        assert mask_of(layer).tolist() == [[False, True, False, True]]
        assert layer.weight.tolist() == [[0.0, 0.5, 0.0, 0.0]]
        assert (report.dropped, report.grown, report.moved) == ({"weight": 1}, {"weight": 1}, 0.5)

    def test_ties_go_to_the_lowest_index(self) -> None:
        layer = nn.Linear(6, 1, bias=False)
        layer.weight.data.fill_(1)
        set_mask(layer, "weight", torch.tensor([[False, True, True, False, True, False]]))
        rewire(layer, {"weight": torch.ones(1, 6)}, fraction=0.4)
        assert mask_of(layer).tolist() == [[True, False, True, False, True, False]]

    def test_an_entry_that_is_dropped_does_not_come_back_at_once(self) -> None:
        model = sparse()
        before = mask_of(model[0]).clone()
        report = rewire(model, {"0.weight": 100 * before.float() + 1})
        lost = int((before & ~mask_of(model[0])).sum())
        assert lost == report.dropped["0.weight"] == int(0.3 * before.sum())

    def test_random_growth_needs_no_gradient_and_depends_on_the_seed_alone(self) -> None:
        models = [sparse() for _ in range(3)]
        for model, seed in zip(models, (0, 0, 1), strict=True):
            rewire(model, method="set", seed=seed)
        masks = [mask_of(model[0]) for model in models]
        assert torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[0], masks[2])

    def test_a_weight_without_a_gradient_stays_as_it_is(self) -> None:
        model = sparse()
        before = mask_of(model[2]).clone()
        report = rewire(model, {"0.weight": torch.ones(12, 32)})
        assert torch.equal(mask_of(model[2]), before)
        assert report.grown["2.weight"] == 0 < report.grown["0.weight"]

    def test_a_gradient_that_is_not_finite_moves_nothing(self) -> None:
        model = sparse()
        report = rewire(model, {"0.weight": torch.full((12, 32), torch.nan)})
        assert report.moved == 0

    def test_a_nearly_dense_weight_moves_as_many_as_it_has_places(self) -> None:
        model = mlp(32, 12, 5)
        sparsify(model, 0.95, layers="0")
        free = int((~mask_of(model[0])).sum())
        assert rewire(model, dense(model), fraction=0.5).grown["0.weight"] == free


class TestCounts:
    """The number of non-zeros."""

    @settings(max_examples=40, deadline=None)
    @given(
        start=st.sampled_from(["sparse", "split", "folded", "mixed"]),
        method=st.sampled_from(["rigl", "set"]),
        scope=st.sampled_from(["layer", "model"]),
        fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 99),
        alpha=st.sampled_from([2, 3, 4]),
    )
    def test_the_number_of_nonzeros_stays(
        self, start: str, method: str, scope: str, fraction: float, seed: int, alpha: int
    ) -> None:
        model = sparse() if start == "sparse" else split("folded" if start != "split" else "masked", alpha, seed)
        if start == "mixed":
            sparsify(model, 0.5, layers="2")
        before = fpe.count_nonzeros(model)
        held = {name: int(dense_mask(m).sum()) for name, m in model.named_modules() if dense_mask(m) is not None}
        for turn in range(3):
            report = rewire(model, dense(model, seed + turn), method=method, fraction=fraction, scope=scope, seed=seed)
            assert report.nonzeros_before == report.nonzeros_after == before == fpe.count_nonzeros(model)
            assert sum(report.dropped.values()) == sum(report.grown.values())
            if scope == "layer":
                assert {name: int(dense_mask(model.get_submodule(name)).sum()) for name in held} == held
            check_masks(model)
            train(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(4, 32), steps=1)

    def test_grown_weights_are_allowed_before_they_are_nonzero(self) -> None:
        model = mlp(32, 12, 5)
        sparsify(model, 0.5, allocation="classifier_dense")
        before = fpe.count_nonzeros(model)
        report = rewire(model, dense(model))
        actual = sum(int(p.count_nonzero()) for p in model.parameters())
        assert actual == before - sum(report.grown.values())
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(4, 32), steps=1)
        assert sum(int(p.count_nonzero()) for p in model.parameters()) == before

    def test_weights_move_between_layers(self) -> None:
        model = sparse()
        gradients = {name: g * (100 if name == "0.weight" else 1) for name, g in dense(model).items()}
        report = rewire(model, gradients, scope="model")
        assert report.grown["0.weight"] == sum(report.dropped.values())
        assert report.grown["2.weight"] == 0

    def test_a_dense_classifier_gives_and_takes_part_from_then_on(self) -> None:
        model = mlp(32, 12, 5)
        sparsify(model, 0.5, allocation="classifier_dense")
        assert mask_of(model[2]) is None
        before = fpe.count_nonzeros(model)
        report = rewire(model, dense(model), scope="model")
        assert report.dropped["2.weight"] == int(0.3 * 60)
        assert int(mask_of(model[2]).sum()) == 60 - report.dropped["2.weight"]
        assert fpe.count_nonzeros(model) == before


class TestInTheFold:
    """Folded weights stay folded."""

    def test_it_stays_folded_and_a_place_has_one_child(self) -> None:
        model = split("folded")
        before = dense_mask(model[0])
        shape = model[0].weight.shape
        rewire(model, dense(model))
        after = dense_mask(model[0])
        assert model[0].weight.shape == shape
        assert after.view(6, 4, 32).sum(1).max() == 1
        assert after.sum() == before.sum()
        assert not torch.equal(after, before)

    def test_growth_is_the_best_place_of_any_child_that_does_not_hold_it(self) -> None:
        model = split("folded")
        gradient = torch.zeros(24, 32)
        mask = dense_mask(model[0])
        free = (~mask.view(6, 4, 32).any(1)).nonzero()  # places that pruning left
        parent, place = free[0].tolist()
        gradient[4 * parent + 2, place] = 5
        held = mask.nonzero()[0].tolist()
        gradient[tuple(held)] = 99  # already there: never grown again
        rewire(model, {"0.weight": gradient}, fraction=0.2)
        assert bool(dense_mask(model[0])[4 * parent + 2, place])

    def test_a_weight_moves_to_a_sibling(self) -> None:
        model = split("folded")
        weight, mask = dense_weight(model[0]).detach(), dense_mask(model[0])
        smallest = torch.where(mask, weight.abs(), torch.inf).flatten().argmin()
        row, column = divmod(int(smallest), 32)
        sibling = row - row % 4 + (row + 1) % 4
        gradient = torch.zeros(24, 32)
        gradient[sibling, column] = 1
        rewire(model, {"0.weight": gradient}, fraction=1.5 / int(mask.sum()))
        after = dense_mask(model[0])
        assert bool(after[sibling, column])
        assert not bool(after[row, column])

    def test_it_computes_what_the_masked_form_computes(self) -> None:
        model = split("folded")
        rewire(model, dense(model))
        masked = copy.deepcopy(model)
        store(masked[0])
        x = torch.randn(5, 32)
        torch.testing.assert_close(model(x), masked(x))

    def test_dense_gradients_are_those_of_the_wide_weight(self) -> None:
        folded = split("folded")
        masked = copy.deepcopy(folded)
        store(masked[0])
        x = torch.randn(5, 32)
        found = []
        for model in (folded, masked):
            with dense_gradients(model) as gradients:
                model(x).pow(2).sum().backward()
            found.append(gradients["0.weight"].sum)
        torch.testing.assert_close(*found)

    def test_a_state_dict_brings_the_moved_codes_back(self) -> None:
        model = split("folded")
        rewire(model, dense(model))
        fresh = mlp(32, 6, 3, seed=1)
        fpe.load_expanded_state_dict(fresh, model.state_dict())
        assert torch.equal(dense_mask(fresh[0]), dense_mask(model[0]))


class TestKinds:
    """Kinds of layers."""

    def test_convolutions(self) -> None:
        model = cnn()
        x = torch.randn(2, 16, 8, 8)
        fpe.expand(model, fpe.Paper(alpha=2), example_inputs=x)
        before = fpe.count_nonzeros(model)
        with dense_gradients(model) as gradients:
            model(x).sum().backward()
        report = rewire(model, gradients)
        assert report.grown["0.weight"] > 0
        assert fpe.count_nonzeros(model) == before

    def test_the_conv1d_of_transformers(self) -> None:
        pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
        model = nn.Sequential(pytorch_utils.Conv1D(12, 16), nn.Tanh(), pytorch_utils.Conv1D(3, 12))
        assert sparsify(model, 0.5) == {"0": 96, "2": 18}
        with dense_gradients(model) as gradients:
            model(torch.randn(4, 16)).sum().backward()
        assert rewire(model, gradients).grown == {"0.weight": 28, "2.weight": 5}
        check_masks(model)

    def test_the_projections_of_attention(self) -> None:
        model = nn.MultiheadAttention(8, 2)
        set_mask(model, "in_proj_weight", torch.rand(24, 8) < 0.5)
        x = torch.randn(3, 2, 8)
        with dense_gradients(model) as gradients:
            model(x, x, x)[0].pow(2).sum().backward()
        assert rewire(model, gradients).grown["in_proj_weight"] > 0
        check_masks(model)

    def test_a_tied_weight_moves_once_and_in_both_places(self) -> None:
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        model[2].weight = model[0].weight
        mask = torch.rand(6, 6) < 0.5
        for layer in (model[0], model[2]):
            set_mask(layer, "weight", mask.clone())
        with dense_gradients(model) as gradients:
            model(torch.randn(4, 6)).pow(2).sum().backward()
        report = rewire(model, gradients)
        assert list(report.held) == ["0.weight"]
        assert torch.equal(mask_of(model[0]), mask_of(model[2]))
        assert not torch.equal(mask_of(model[0]), mask)


class TestWhatFollows:
    """Moments, gradients and copies."""

    @pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
    def test_moments_of_weights_that_moved_begin_at_zero(self, kind: type[torch.optim.Optimizer]) -> None:
        model = sparse()
        optimizer = kind(model.parameters(), lr=0.01)
        train(model, optimizer, torch.randn(4, 32))
        weight, before = model[0].weight, mask_of(model[0]).clone()
        kept = {key: value.clone() for key, value in optimizer.state[weight].items()}
        rewire(model, dense(model), optimizer=optimizer)
        moved = before != mask_of(model[0])
        for key, value in optimizer.state[weight].items():
            if value.shape == weight.shape:
                assert not value[moved].any()
                assert torch.equal(value[~moved], kept[key][~moved])

    def test_gradients_that_are_being_accumulated(self) -> None:
        model = sparse()
        model(torch.randn(4, 32)).sum().backward()
        before = mask_of(model[0]).clone()
        rewire(model, dense(model))
        assert not model[0].weight.grad[before != mask_of(model[0])].any()

    def test_averages_and_teachers(self) -> None:
        model = nn.ModuleDict({"student": sparse()})
        model["teacher"] = copy.deepcopy(model["student"]).requires_grad_(False)
        average = copy.deepcopy(model)
        shadow = [p.detach().clone() for p in model["student"].parameters()]
        gradients = {f"student.{name}": gradient for name, gradient in dense(model["student"]).items()}
        rewire(model, gradients, averages=[average, shadow])
        expected = mask_of(model["student"][0])
        for other in (model["teacher"][0], average["student"][0], average["teacher"][0]):
            assert torch.equal(mask_of(other), expected)
            assert not other.weight[~expected].any()
        assert not shadow[0][~expected].any()

    def test_frozen_weights_stay(self) -> None:
        model = sparse()
        model[0].requires_grad_(False)
        report = rewire(model, dense(model))
        assert list(report.held) == ["2.weight"]
        assert report.left_out == {"0.weight": "nothing trains it"}


class TestRefusals:
    """One sentence, and nothing changes."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"method": "rigel"}, "`method` is one of 'rigl', 'set'"),
            ({"fraction": 0}, "`fraction` is a share"),
            ({"fraction": 1.0}, "`fraction` is a share"),
            ({"fraction": True}, "`fraction` is a share"),
            ({"growth": "magnitude"}, "`growth` is one of"),
            ({"scope": "network"}, "`scope` is one of"),
            ({"layers": "1.fc"}, "no such layer with weights"),
            ({"layers": ["0", "blocks.*"]}, "names 'blocks.*'"),
            ({"gradients": {"0.weight": torch.zeros(2, 2)}}, "has shape \\(2, 2\\)"),
            ({"averages": ["ema"]}, "`averages` names 'ema'"),
        ],
    )
    def test_bad_arguments_change_nothing(self, arguments: dict, words: str) -> None:
        model = sparse()
        before = snapshot(model)
        with pytest.raises(ValueError, match=words):
            rewire(model, **{"gradients": dense(model), **arguments})
        assert str(snapshot(model)) == str(before)

    def test_nothing_is_masked(self) -> None:
        for scope in ("layer", "model"):
            with pytest.raises(ValueError, match="There is nothing to rewire: no weight has a mask"):
                rewire(mlp(8, 4, 2), {}, scope=scope)

    def test_layouts_in_which_single_weights_cannot_move(self) -> None:
        model = mlp(32, 8, 4)
        fpe.expand(model, fpe.Blocks(alpha=2, groups=2), example_inputs=torch.randn(2, 32))
        with pytest.raises(ValueError, match="it is stored in blocks, where single weights cannot move"):
            rewire(model, layers="0")
        with pytest.raises(ValueError, match=r"nothing to rewire: `0\.weight` stays as it is stored in blocks"):
            rewire(model)

    def test_weight_norm(self) -> None:
        model = sparse()
        nn.utils.parametrizations.weight_norm(model[0])
        assert "computed from other parameters" in rewire(model, {}).left_out["0.weight"]
