"""Studies of networks that are no MLPs: the same arms, budgets and rows, one network at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.networks import SmallCNN
from fpe_lightning.sites.select import select_sites
from fpe_lightning.sparse import check_masks, mask_of
from studies import pictures
from studies.dropconnect import DropConnectNetwork
from studies.errors import StudyError
from studies.from_scratch import begin, layers_of
from studies.pictures import CNN, Pictures, ViT
from studies.study import Study
from studies.task import Task
from studies.training import run_block
from tests.support.arms import ARMS, KINDS, arms

pytestmark = pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")  # the networks here are tiny

HEAD = CNN(hidden=4, channels=[4, 8], alpha=2, epochs=2, batch_size=16)
BOTH = replace(HEAD, convolutions=True)
BLOCKS = ViT(hidden=4, width=8, depth=2, alpha=2, epochs=2, batch_size=16)
EVERY = {"head": HEAD, "head and convolutions": BOTH, "feed-forward": BLOCKS}
SENSELESS = ("clause", "interaction", "coactivation", "wide_placed")


def drawn() -> Task:
    x = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, 0, :5, 0].argmax(1)
    return Task((x, y), (x, y), (x, y), classes=5)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    task = drawn()
    monkeypatch.setattr(pictures, "pictures", lambda *_: task)


@pytest.mark.parametrize("setting", EVERY.values(), ids=EVERY)
def test_every_arm_keeps_the_budget_unless_it_is_marked(setting: Pictures) -> None:
    names = [name for name in KINDS if name not in SENSELESS]
    rows = run_block(setting, arms(*names), [0])
    budget = fpe.count_nonzeros(setting.build(drawn(), setting.widths()))
    assert {row.arm: row.why for row in rows if row.status != "done"} == {}
    assert [row.arm for row in rows] == names
    assert {row.arm for row in rows if row.nonzeros != budget} == {name for name in names if ARMS[name].marked}
    (more,) = [row for row in rows if row.arm == "dense_larger"]
    assert 1.2 <= more.nonzeros / budget < 1.35


@pytest.mark.parametrize("setting", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("arm", ["wide_sparse", "wide_sparse_even", "constant_fan_in"])
def test_a_network_from_scratch_has_the_shapes_and_the_count_of_a_split_one(setting: Pictures, arm: str) -> None:
    task = drawn()
    network = begin(ARMS["dense"], setting, task, 0)
    dense = [parameter.shape for parameter in network.parameters()]
    sites = select_sites(fpe.find_sites(network, task.train[0][:2]), setting.splits)
    before = fpe.count_nonzeros(network)
    fpe.expand(network, fpe.Paper(alpha=setting.alpha), sites=sites)
    wide = begin(ARMS[arm], setting, task, 0)
    assert [parameter.shape for parameter in wide.parameters()] == [p.shape for p in network.parameters()] != dense
    assert fpe.count_nonzeros(wide) == before
    check_masks(wide)
    layers = layers_of(wide)
    held = {name for name, layer in layers.items() if mask_of(layer) is not None}
    if arm == "wide_sparse_even":
        assert held == set(layers)
        shares = [float(layer.fpe_mask_weight.float().mean()) for layer in layers.values() if layer.weight.numel() > 50]
        assert max(shares) - min(shares) < 0.05
    else:
        assert held == {name for name in layers if "head" not in name or name == "head.0"} & (
            {"head.0"}
            if setting is HEAD
            else {"blocks.1.0", "head.0"}
            if setting is BOTH
            else {f"blocks.{block}.ffn.{layer}" for block in (0, 1) for layer in (0, 2)}
        )
    if arm == "constant_fan_in":
        for name in held:
            fan_in = mask_of(layers[name]).flatten(1).sum(1)  # type: ignore[union-attr]
            assert int(fan_in.max() - fan_in.min()) <= 1


@pytest.mark.parametrize("setting", [HEAD, BLOCKS], ids=["cnn", "vit"])
def test_a_split_run_equals_a_plain_loop(setting: Pictures) -> None:
    setting = replace(setting, epochs=3, split=1)
    (row,) = run_block(setting, arms("random"), [5])
    task = drawn()
    (x, y), seed = task.train, 5
    torch.manual_seed(seed)
    network = setting.build(task, setting.widths())
    if setting.zero_biases:
        for layer in list(layers_of(network).values())[:-1]:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.lr, fused=True)
    for epoch in range(3):
        if epoch == 1:
            assert setting.splits is not None
            fpe.expand(network, fpe.Paper(seed=seed), sites=setting.splits, optimizer=optimizer, example_inputs=x[:2])
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
        for rows in order.split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    network.eval()
    assert row.test == pytest.approx(float((network(x).argmax(1) == y).float().mean()))


def test_an_arm_does_not_depend_on_the_other_arms_and_seeds() -> None:
    alone = run_block(BOTH, arms("random"), [1])
    among = run_block(BOTH, arms("dense", "random_at_0", "random", "dropconnect", "ensemble"), [0, 1])
    (same,) = [row for row in among if row.arm == "random" and row.seed == 1]
    assert replace(same, seconds=0) == replace(alone[0], seconds=0)


def test_progress_adds_up_to_the_work_announced() -> None:
    chosen, seen = arms("dense", "random", "wide_sparse"), list[int]()
    run_block(HEAD, chosen, [0, 1], seen.append)
    assert sum(seen) == 2 * HEAD.work(list(chosen.values())) == 2 * (2 + 1 + 2)


def test_drop_connect_drops_in_training_alone() -> None:
    torch.manual_seed(0)
    network = begin(ARMS["dropconnect"], HEAD, drawn(), 0)
    assert isinstance(network, DropConnectNetwork)
    assert network.layers == ["head.0"]
    x = drawn().train[0]
    network.train()
    assert not torch.equal(network(x), network(x))
    before = network.network.blocks[0][1].running_mean.clone()  # type: ignore[index, union-attr, operator]
    network(x)
    assert not torch.equal(before, network.network.blocks[0][1].running_mean)  # type: ignore[index, union-attr, arg-type]
    network.eval()
    assert torch.equal(network(x), network.network(x))
    with pytest.raises(ValueError, match=r"DropConnect keeps a weight with a probability in \(0, 1\], found 0.0"):
        DropConnectNetwork(nn.Sequential(nn.Linear(2, 1)), ["0"], 0.0)


def test_an_arm_at_a_rate_of_its_own_is_one_of_a_setting_with_that_rate() -> None:
    rates = replace(HEAD, rates={"random": 0.02})
    study = Study({"S": rates}, arms("dense", "random", "shared"), seeds=2, block=2)
    study.check()
    blocks = study.blocks(set())
    assert [(list(block.arms), block.setting.lr) for block in blocks] == [
        (["dense", "shared"], 3e-3),
        (["random"], 0.02),
    ]
    assert sum(block.cells for block in blocks) == len(study.cells()) == 6
    with pytest.raises(
        StudyError, match="Setting 'S' has a rate for 'feature', which is no arm of the study; its arms"
    ):
        Study({"S": replace(HEAD, rates={"feature": 0.1})}, arms("dense")).check()
    with pytest.raises(StudyError, match=r"Learning rates have to be positive, found 0\.0 for arm 'dense'"):
        Study({"S": replace(HEAD, rates={"dense": 0.0})}, arms("dense")).check()


def test_a_rule_that_leaves_too_little_fails_alone_and_says_why() -> None:
    rows = {row.arm: row for row in run_block(BLOCKS, arms("dense", "random_incoming", "random_blocks"), [0])}
    assert [row.status for row in rows.values()] == ["done", "failed", "done"]
    assert "as many weights of blocks.0.ffn.0.weight have to go" in rows["random_incoming"].why


@pytest.mark.parametrize("arm", SENSELESS)
def test_an_arm_that_makes_no_sense_for_pictures_is_refused(arm: str) -> None:
    with pytest.raises(
        StudyError, match=rf"^Arm '{arm}' cannot be in setting 'S': it asks for the partition .*leave it out\.$"
    ):
        Study({"S": HEAD}, arms("dense", arm)).check()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (CNN(hidden=[4, 4]), r"`hidden` is the one hidden width of the head, found \[4, 4\]."),
        (CNN(channels=[4, 0]), r"`channels` has to be at least 1, found \[4, 0\]."),
        (CNN(channels=[4], convolutions=True), "`convolutions` splits all but the first, found a single one"),
        (CNN(shrink=0), "`shrink` has to be at least 1, found 0."),
        (CNN(classes=[3]), r"`classes` are two numbers, the first class and the one after the last, found \[3\]."),
        (CNN(dataset="image_folder"), "`dataset: image_folder` holds pictures of any size"),
        (ViT(hidden=[4, 4, 4]), r"one for each block, .*; found \[4, 4, 4\] for 2 blocks."),
        (ViT(depth=0), "found 8 for 0 blocks."),
        (ViT(alpha=1), "`alpha` has to be at least 2, found 1."),
    ],
)
def test_a_setting_that_cannot_be_gets_one_sentence(setting: Pictures, sentence: str) -> None:
    with pytest.raises(StudyError, match=f"^Setting 'S' cannot be: .*{sentence}"):
        Study({"S": setting}, arms("dense")).check()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (replace(BLOCKS, patch=3), "A ViT needs a patch that divides the pictures"),
        (replace(HEAD, channels=[2] * 5), "5 blocks halve 16 pixels to zero"),
        (replace(HEAD, batch_size=39), "40 pictures in batches of 39 leave one that is alone"),
    ],
)
def test_a_network_that_does_not_fit_the_pictures_gets_one_sentence(setting: Pictures, sentence: str) -> None:
    with pytest.raises(StudyError, match=f"^Setting 'S' cannot be: {sentence}"):
        Study({"S": setting}, arms("dense")).prepare()


class Drawings:
    """Pictures of one grey each."""

    classes: Sequence[str] = "abcd"
    fingerprint = ""

    def __init__(self, size: int) -> None:
        self.labels = torch.arange(size) % 4

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert index % 4 in (1, 2), "a picture of a class that was not asked for was drawn"
        return torch.full((4, 4, 3), index).numpy(), index % 4


def test_chosen_classes_are_read_standardised_and_numbered_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    splits = type("Splits", (), {"train": Drawings(40), "val": Drawings(8), "test": Drawings(8)})
    monkeypatch.setattr(pictures, "load_images", lambda *_: splits)
    task = pictures.pictures.__wrapped__("drawings", "data", False, (1, 3), 10, 2)
    x, y = task.train
    assert (x.shape, task.classes) == ((10, 1, 2, 2), 2)  # equal channels are one, and 2 x 2 pixels are one
    assert torch.equal(y.bincount(), torch.tensor([5, 5]))
    torch.testing.assert_close((x.mean(), x.std(correction=0)), (torch.tensor(0.0), torch.tensor(1.0)))
    assert [len(part[1]) for part in (task.val, task.test)] == [4, 4]
    for classes in [(3, 4), (0, 5), (-1, 2)]:
        with pytest.raises(ValueError, match=f"at least two of 0 to 3; found {classes[0]} and {classes[1]}"):
            pictures.pictures.__wrapped__("drawings", "data", False, classes, None, 1)


def test_labels_of_glyphs_are_known_before_they_are_drawn() -> None:
    from fpe_lightning.data.glyphs import GlyphDataset

    data = GlyphDataset("val", size=100)
    assert [data[index][1] for index in (0, 64, 99)] == [int(data.labels[index]) for index in (0, 64, 99)]


def test_two_classes_share_one_output() -> None:
    task = drawn()
    two = Task(*((x, y % 2) for x, y in (task.train, task.val, task.test)), classes=2)  # type: ignore[arg-type]
    network, rows = SmallCNN(1, 16, 1, [4], 3).eval(), torch.arange(7)
    expected = nn.functional.binary_cross_entropy_with_logits(network(two.train[0][:7])[:, 0], two.train[1][:7].float())
    torch.testing.assert_close(two.loss_of(network, rows), expected)
    found: Tensor = torch.as_tensor(two.accuracy([network], two.test))
    assert 0 <= float(found) <= 1
