"""A network is saved in a folder and loads from it, split or not."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

import fpe_lightning as fpe
from fpe_lightning.networks import MLP, SmallCNN, SmallViT, WideSparseMLP

NETWORKS = {
    "mlp": (lambda: MLP(8, [6, 5], 3, activation="gelu", batch_norm=True), torch.randn(2, 8)),
    "wide sparse": (lambda: WideSparseMLP(8, 4, 3, 2), torch.randn(2, 8)),
    "cnn": (lambda: SmallCNN(1, 16, 3), torch.randn(2, 1, 16, 16)),
    "vit": (lambda: SmallViT(1, 16, 3), torch.randn(2, 1, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_after_a_round_trip(name: str, tmp_path: Path) -> None:
    make, x = NETWORKS[name]
    network = make().eval()
    network.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = type(network).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x), network(x))


def test_a_split_network_loads_as_wide_as_it_was(tmp_path: Path) -> None:
    network, x = MLP(8, 6, 3), torch.randn(2, 8)
    fpe.expand(network, fpe.Paper(alpha=2), example_inputs=x)
    network.save_pretrained(tmp_path)
    loaded = MLP.from_pretrained(str(tmp_path))
    assert loaded.linear_layers()[0].out_features == 12
    assert torch.equal(loaded(x), network(x))
    assert fpe.count_nonzeros(loaded) == fpe.count_nonzeros(network)


def test_copies_and_pickles_keep_their_arguments(tmp_path: Path) -> None:
    network = MLP(8, hidden=6, out_features=3)
    for number, copied in enumerate((copy.deepcopy(network), pickle.loads(pickle.dumps(network)))):
        copied.save_pretrained(tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["hidden"] == 6


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        MLP.from_pretrained(tmp_path / "none")
    MLP(8, 6, 3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a MLP, and WideSparseMLP\.from_pretrained"):
        WideSparseMLP.from_pretrained(tmp_path)
    with pytest.raises(TypeError):
        MLP(8, 6, 3, colour="red")  # type: ignore[call-arg]
