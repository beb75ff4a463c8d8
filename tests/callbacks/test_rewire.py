"""The callback Rewire in a Trainer: exact counts at every step, resumes, splits, copies, and refusals."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from boring import Plain, equal, loader, network, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, Rewire
from fpe_lightning.callbacks.rewire_schedule import RewireSchedule
from fpe_lightning.rewiring import GradientSums, movable_weights
from fpe_lightning.sparse import check_masks, dense_mask, mask_of


class Sparse(Plain):
    """Wide and sparse from the start."""

    def __init__(self, density: float = 0.3, **options: Any) -> None:
        super().__init__(**options)
        self.net = network(width=24)
        fpe.sparsify(self.net, density)


class Counting(pl.Callback):
    """Counts the non-zeros before each batch and after each step, and keeps the masks of each epoch."""

    def __init__(self) -> None:
        self.counts: set[int] = set()
        self.masks: list[Any] = []

    def _look(self, module: Any) -> None:
        self.counts.add(fpe.count_nonzeros(module.net))
        check_masks(module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._look(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self._look(pl_module)
        mask = dense_mask(pl_module.net[0])
        self.masks.append(None if mask is None else mask.clone())


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> Counting:
    counting = Counting()
    trainer(*callbacks, counting, **options).fit(module, loader())
    return counting


def changes(masks: list[Any]) -> list[int]:
    """The numbers of the batches before which a mask changed."""
    return [i for i, (a, b) in enumerate(itertools.pairwise(masks), 1) if not same(a, b)]


def same(mask: Any, other: Any) -> bool:
    return mask is other or (mask is not None and other is not None and equal(mask, other))


class TestMoments:
    """When masks move."""

    def test_once_an_epoch_until_three_quarters(self) -> None:
        callback = Rewire()
        counting = fit(Sparse(), callback, max_epochs=20)
        assert changes(counting.masks) == [6 * epoch for epoch in range(1, 15)]
        assert len(counting.counts) == 1
        shares = [report.moved for report in callback.reports]
        assert shares == sorted(shares, reverse=True)
        assert 0.25 < shares[0] < 0.3

    def test_every_so_many_steps(self) -> None:
        counting = fit(Sparse(), Rewire(every=4, until=1.0), max_epochs=4)
        assert changes(counting.masks) == [4, 8, 12, 16, 20]

    def test_accumulated_steps_count_once(self) -> None:
        counting = fit(Sparse(), Rewire(every=2, until=1.0), max_epochs=4, accumulate_grad_batches=3)
        assert changes(counting.masks) == [6, 12, 18]

    def test_defaults_of_long_epochs_and_short_runs(self) -> None:
        class Fake:
            max_epochs, max_steps, accumulate_grad_batches, num_training_batches = 50, -1, 1, 2000

        run: Any = Fake()
        schedule = RewireSchedule()
        assert schedule.interval(run) == 500
        run.num_training_batches = 60
        assert schedule.interval(run) == 60
        run.max_epochs = 3
        assert schedule.interval(run) == 10


class TestGradients:
    """What growth sees."""

    def test_the_sum_is_that_of_all_dense_gradients_of_the_window(self) -> None:
        seen: dict[int, torch.Tensor] = {}

        class Spying(Rewire):
            def _update(self, *arguments: Any) -> None:
                seen["sum"] = self._sums["net.0.weight"].sum.clone()

        module = Sparse()
        trainer(Spying(every=4, window=2, until=1.0), max_steps=5).fit(module, loader())

        plain = Sparse()
        optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
        expected = torch.zeros(24, 48)
        for step, batch in zip(range(4), loader(), strict=False):
            optimizer.zero_grad()
            if step >= 2:  # the dense gradient, of a copy without masks
                other = network(width=24)
                other.load_state_dict({k: v for k, v in plain.net.state_dict().items() if "fpe" not in k})
                F.cross_entropy(other(batch[0]), batch[1]).backward()
                expected += other[0].weight.grad
            plain.step(batch).backward()
            optimizer.step()
        torch.testing.assert_close(seen["sum"], expected)

    def test_nothing_is_held_outside_of_the_window(self) -> None:
        held = []

        class Looking(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                held.append(callback._sums is not None)

        callback = Rewire(every=4, window=1, until=1.0)
        trainer(callback, Looking(), max_steps=8).fit(Sparse(), loader())
        assert held == [False, False, False, True] * 2

    def test_loss_scales_do_not_matter_and_overflows_do_not_count(self) -> None:
        x, y = next(iter(loader()))
        sums = []
        for scale in (1.0, 2.0**10):
            module = Sparse()
            gradients = GradientSums(movable_weights(module)[0])
            gradients.factor = 1 / scale
            gradients.start()
            (F.cross_entropy(module.net(x), y) * scale).backward()
            if scale > 1:
                (module.net(x).sum() * torch.inf).backward()
            sums.append(gradients["net.0.weight"].sum)
        assert torch.equal(*sums)

    def test_the_scale_is_that_of_the_scaler(self) -> None:
        class Scaler:
            def get_scale(self) -> float:
                return 4.0

        seen = []

        class Looking(pl.Callback):
            def on_before_backward(self, *_: Any) -> None:
                seen.append(callback._sums.factor)

        callback = Rewire(until=1.0)
        run = trainer(callback, Looking(), max_epochs=2)
        run.precision_plugin.scaler = Scaler()
        run.fit(Sparse(), loader())
        assert set(seen) == {0.25}

    def test_momentum_and_random_growth(self) -> None:
        for growth in ("momentum", "random"):
            counting = fit(Sparse(), Rewire(growth=growth, every=4, until=1.0))
            assert changes(counting.masks) == [4, 8, 12, 16, 20]
            assert len(counting.counts) == 1


class TestSplits:
    """Together with ExpansionCallback."""

    @pytest.mark.parametrize("rewire_first", [False, True])
    @pytest.mark.parametrize("layout", ["masked", "folded"])
    @pytest.mark.parametrize("step", [3, 4, 8])
    def test_before_at_and_after_a_split(self, rewire_first: bool, layout: str, step: int) -> None:
        expansion = fpe.Paper(alpha=2, prune="incoming", layout=layout)
        callbacks = [ExpansionCallback(expansion, step=step), Rewire(every=4, until=1.0)]
        module = Plain()
        before = fpe.count_nonzeros(module.net)
        counting = fit(module, *(callbacks[::-1] if rewire_first else callbacks))
        assert counting.counts == {before}
        assert set(changes(counting.masks)) >= {12, 16, 20}
        assert (module.net[0].weight.shape == (6, 48)) == (layout == "folded")

    def test_a_sparse_start_that_is_split(self) -> None:
        module = Sparse()
        counting = fit(module, Rewire(every=2, until=1.0), ExpansionCallback(fpe.Paper(alpha=2), step=5))
        assert len(counting.counts) == 1
        assert module.net[0].out_features == 48


class TestResume:
    """Resumed runs end bit-identical to uninterrupted ones."""

    @pytest.mark.parametrize("scope", ["layer", "model"])
    @pytest.mark.parametrize("kind", ["sparse", "folded", "set"])
    def test_from_every_step(self, tmp_path: Path, kind: str, scope: str) -> None:
        def run(step: int | None = None) -> Any:
            callbacks: list[pl.Callback] = [
                Rewire("set" if kind == "set" else "rigl", every=3, window=0.7, until=1.0, scope=scope)
            ]
            if kind == "folded":
                callbacks.append(ExpansionCallback(fpe.Paper(alpha=4, prune="incoming", layout="folded"), step=1))
            if step is None:
                callbacks.append(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1))
            module = Plain() if kind == "folded" else Sparse()
            fitted = trainer(*callbacks, directory=tmp_path, max_steps=11)
            fitted.fit(module, resumable(), ckpt_path=tmp_path / f"step={step}.ckpt" if step else None)
            return outcome(fitted)

        expected = run()
        for step in range(1, 11):
            assert equal(run(step), expected), step


class TestFollowers:
    """Averages, teachers, several optimizers."""

    def test_averages_have_the_masks_of_the_module(self) -> None:
        ema = EMAWeightAveraging(decay=0.9, update_every_n_steps=1)
        module = Sparse()
        seen = []

        class Looking(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                average = ema._average_model.module
                mask = mask_of(module.net[0])
                seen.append(torch.equal(mask_of(average.net[0]), mask) and not bool(average.net[0].weight[~mask].any()))

        fit(module, Rewire(every=4, until=1.0), ema, Looking())
        assert seen
        assert all(seen)

    def test_a_teacher_inside_of_the_module(self) -> None:
        class Taught(Sparse):
            def __init__(self) -> None:
                super().__init__()
                self.target = copy.deepcopy(self.net).requires_grad_(False)

            def on_train_batch_end(self, *_: Any) -> None:
                with torch.no_grad():
                    for mine, theirs in zip(self.target.parameters(), self.net.parameters(), strict=True):
                        mine.lerp_(theirs, 0.1)

        module = Taught()
        fit(module, Rewire(every=4, until=1.0))
        assert torch.equal(mask_of(module.target[0]), mask_of(module.net[0]))
        check_masks(module)

    def test_several_optimizers_in_manual_optimization(self) -> None:
        class Two(Sparse):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> None:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                self.manual_backward(self.step(batch))
                for optimizer in self.optimizers():
                    optimizer.step()

            def configure_optimizers(self) -> Any:
                return [torch.optim.Adam(self.net[0].parameters()), torch.optim.SGD(self.net[1:].parameters(), lr=0.1)]

        counting = fit(Two(), Rewire(every=4, until=1.0))
        assert changes(counting.masks) == [4, 8, 12, 16, 20]

    def test_clipping_and_low_precision(self) -> None:
        counting = fit(Sparse(), Rewire(every=4, until=1.0), gradient_clip_val=0.1, precision="bf16-mixed")
        assert len(counting.counts) == 1
        assert changes(counting.masks) == [4, 8, 12, 16, 20]


class TestRefusals:
    """One sentence, before anything happens."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"every": 0}, "`every` is a number of optimizer steps"),
            ({"every": 2.5}, "`every` is a number of optimizer steps"),
            ({"fraction": 1}, "`fraction` is a share"),
            ({"fraction": 0.0}, "`fraction` is a share"),
            ({"until": 0}, "`until` is a share above 0"),
            ({"until": 1.5}, "`until` is a share above 0"),
            ({"window": 0}, "`window` is a number"),
            ({"window": 1.5}, "`window` is a number"),
            ({"method": "gmp"}, "`method` is one of"),
            ({"growth": "hessian"}, "`growth` is one of"),
            ({"scope": "global"}, "`scope` is one of"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(MisconfigurationException, match=words):
            Rewire(**arguments)

    @pytest.mark.parametrize(
        ("module", "callback", "options", "words"),
        [
            (Sparse, Rewire(layers="net.9"), {}, "no such layer with weights. Did you mean 'net"),
            (Plain, Rewire(), {}, "nothing to rewire: no weight has a mask"),
            (Plain, Rewire(scope="model"), {}, "nothing to rewire: no weight has a mask"),
            (Sparse, Rewire(every=100), {}, "`every=100` allows no update: the run has 24 optimizer steps"),
            (Sparse, Rewire(), {"max_epochs": -1}, "this run has no end"),
        ],
    )
    def test_at_the_start(self, module: Any, callback: Rewire, options: dict[str, Any], words: str) -> None:
        with pytest.raises(MisconfigurationException, match=words):
            trainer(callback, **options).fit(module(), loader())

    def test_blocks(self) -> None:
        split = ExpansionCallback(fpe.Blocks(alpha=2, groups=2), step=1)
        with pytest.raises(MisconfigurationException, match="stored in blocks, where single weights cannot move"):
            trainer(split, Rewire(layers="net.0")).fit(Plain(), loader())


def test_a_run_without_masks_when_an_update_is_due_says_so() -> None:
    with pytest.warns(UserWarning, match="Rewire has moved nothing in 24 optimizer steps"):
        fit(Plain(), Rewire(every=4, until=0.3), ExpansionCallback(alpha=2, step=20))


def test_layers_by_glob() -> None:
    module = Sparse()
    before = mask_of(module.net[3]).clone()
    fit(module, Rewire(layers=["net.0"], every=4, until=1.0))
    assert torch.equal(mask_of(module.net[3]), before)


def test_compiled_modules() -> None:
    for kind in (Sparse, Plain):
        masks = []
        for compiled in (False, True):
            torch.manual_seed(0)
            module: Any = kind()
            split = [ExpansionCallback(fpe.Paper(alpha=2, prune="incoming", layout="folded"), step=1)]
            counting = Counting()
            run = trainer(Rewire(every=3, until=1.0), *(split if kind is Plain else []), counting, max_steps=7)
            run.fit(torch.compile(module, backend="aot_eager") if compiled else module, loader())
            masks.append(counting.masks[-1])
            assert len(counting.counts) == 1
        assert torch.equal(*masks)


class TestLogs:
    """What loggers get."""

    def test_scalars_a_histogram_and_a_figure(self, tmp_path: Path) -> None:
        class Kept(TensorBoardLogger):
            seen: ClassVar[list[tuple[int, dict[str, float]]]] = []

            def log_metrics(self, metrics: Any, step: Any = None) -> None:
                if "rewire/moved" in metrics:
                    self.seen.append((step, dict(metrics)))
                super().log_metrics(metrics, step)

        logger = Kept(tmp_path)
        module = Sparse()
        fit(module, Rewire(every=4, until=1.0), logger=logger, log_every_n_steps=1)
        assert [step for step, _ in logger.seen] == [4, 8, 12, 16, 20]
        shares = [metrics["rewire/net.0.weight/overlap"] for _, metrics in logger.seen]
        assert all(0 < share < 1 for share in shares)
        assert all(
            metrics["rewire/net.0.weight/mean_fan_in"] == logger.seen[0][1]["rewire/net.0.weight/mean_fan_in"]
            for _, metrics in logger.seen
        )
        events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "histograms": 0})
        events.Reload()
        assert {"rewire/net.0.weight/fan_in", "rewire/net.3.weight/fan_in"} <= set(events.Tags()["histograms"])
        assert {"rewire/net.0.weight/mask", "rewire/net.3.weight/mask"} <= set(events.Tags()["images"])

    def test_a_split_begins_the_history_of_its_masks_again(self, tmp_path: Path) -> None:
        callback = Rewire(every=2, until=1.0)
        split = ExpansionCallback(fpe.Paper(alpha=2, prune="incoming", layout="folded"), step=5)
        fit(Sparse(), callback, split, logger=TensorBoardLogger(tmp_path))
        corners = callback._log._corners["net.0.weight"]
        assert {corner.shape for corner in corners} == {(48, 48)}
