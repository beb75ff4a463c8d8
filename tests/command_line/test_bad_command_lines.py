"""Every bad command line ends in one sentence and with code 2; no traceback, unless it is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fpe_lightning.cli import main
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP

NETWORK, DATA, TRAINER = "--model.network.init_args", "--data.init_args", "--trainer"
EMBEDDINGS = "--data=fpe_lightning.data.EmbeddingDataModule"
PIXELS = "--data=fpe_lightning.data.ImageDataModule"
FOLDER = "--data=fpe_lightning.data.ImageFolderDataModule"

BAD: dict[str, tuple[str, str]] = {
    # values of networks
    "hidden -8": (f"{NETWORK}.hidden=-8", "hidden"),
    "hidden 0": (f"{NETWORK}.hidden=0", "hidden"),
    "hidden a word": (f"{NETWORK}.hidden=wide", "hidden"),
    "hidden [8, 0]": (f"{NETWORK}.hidden=[8,0]", "hidden"),
    "hidden 2.5": (f"{NETWORK}.hidden=2.5", "hidden"),
    "in_features 23": (f"{NETWORK}.in_features=23", "23 inputs"),
    "in_features 0": (f"{NETWORK}.in_features=0", "integers of at least 1"),
    "out_features 7": (f"{NETWORK}.out_features=7", "7 outputs"),
    "activation": (f"{NETWORK}.activation=rel", "rel"),
    "dropout 2": (f"{NETWORK}.dropout=2", "dropout"),
    "network of no name": ("--model.network=NoSuchNet", "NoSuchNet"),
    "task": ("--model.task=ternary", "ternary"),
    "optimizer of no name": ("--model.optimizer=Adamant", "Adamant"),
    "learning rate -1": ("--model.optimizer=torch.optim.Adam --model.optimizer.init_args.lr=-1", "learning rate"),
    "learning rate a word": ("--model.optimizer=torch.optim.Adam --model.optimizer.init_args.lr=fast", "fast"),
    "model of no name": ("--model=NoSuchModule", "NoSuchModule"),
    "model that is no module": ("--model=pathlib.Path", "Path"),
    "scheduler interval": ("--model.scheduler_interval=hour", "hour"),
    # values of data
    "batch 0": (f"{DATA}.batch_size=0", "batch_size"),
    "batch -3": (f"{DATA}.batch_size=-3", "batch_size"),
    "batch a word": (f"{DATA}.batch_size=many", "many"),
    "train size 0": (f"{DATA}.train_size=0", "train"),
    "seed -1": (f"{DATA}.seed=-1", "seed"),
    "clauses that do not fit": (f"{DATA}.clauses=100", "clauses"),
    "coding": (f"{DATA}.coding=trits", "trits"),
    "data of no name": ("--data=NoSuchData", "NoSuchData"),
    "data set of no name": (f"{EMBEDDINGS} {DATA}.dataset=cifar", "cifar"),
    "data set that is missing": (f"{EMBEDDINGS} {DATA}.dataset=cifar10 {DATA}.data_dir=nowhere", "nowhere"),
    "encoder of no name": (f"{EMBEDDINGS} {DATA}.encoder=ViT-X", "ViT-X"),
    "encoder without a folder": (f"{EMBEDDINGS} {DATA}.encoder=local-dir:nowhere", "nowhere"),
    "encoder without a tag": (f"{EMBEDDINGS} {DATA}.encoder=ViT-B-32", "pretrained"),
    "type of embeddings": (f"{EMBEDDINGS} {DATA}.dtype=int8", "int8"),
    "device of no name": (f"{EMBEDDINGS} {DATA}.device=tpu9", "tpu9"),
    "share of validation": (f"{EMBEDDINGS} {DATA}.val_fraction=2", "val_fraction"),
    "cache that is a file": (f"{EMBEDDINGS} {DATA}.cache_dir=a_file", "a_file"),
    "cache below a file": (f"{EMBEDDINGS} {DATA}.cache_dir=a_file/below", "a_file"),
    "embeddings of other sizes": (EMBEDDINGS, "24 inputs"),
    "pixels of no data set": (f"{PIXELS} {DATA}.dataset=mnist", "mnist"),
    "pixels that are missing": (f"{PIXELS} {DATA}.data_dir=nowhere", "nowhere"),
    "picture size 0": (f"{FOLDER} {DATA}.data_dir=nowhere {DATA}.image_size=0", "image_size"),
    "pictures that are missing": (f"{FOLDER} {DATA}.data_dir=nowhere", "nowhere"),
    # values of the trainer and its callbacks
    "epochs a word": (f"{TRAINER}.max_epochs=many", "many"),
    "accelerator": (f"{TRAINER}.accelerator=abacus", "abacus"),
    "devices 0": (f"{TRAINER}.devices=0", "devices"),
    "precision": (f"{TRAINER}.precision=17", "17"),
    "strategy": (f"{TRAINER}.strategy=chess", "chess"),
    "a key of no name": (f"{TRAINER}.max_epochen=3", "max_epochs"),
    "alpha 0": (f"{TRAINER}.callbacks.expansion.init_args.alpha=0", "alpha"),
    "alpha a word": (f"{TRAINER}.callbacks.expansion.init_args.alpha=two", "two"),
    "epoch -1": (f"{TRAINER}.callbacks.epoch=-1", "epoch"),
    "epoch after the end": (f"{TRAINER}.callbacks.epoch=99", "99"),
    "sites of no name": (f"{TRAINER}.callbacks.sites=[nowhere]", "nowhere"),
    "alpha above the inputs": (f"{TRAINER}.callbacks.expansion.init_args.alpha=1000", "alpha=1000"),
    "save_dir that is a file": (f"{TRAINER}.logger.init_args.save_dir=a_file", "a_file"),
    "logger of no name": (f"{TRAINER}.logger=NoSuchLogger", "NoSuchLogger"),
    # files
    "no such checkpoint": ("--ckpt_path=nowhere.ckpt", "nowhere.ckpt"),
    "a folder for a checkpoint": ("--ckpt_path=a_folder", "a_folder"),
    "an empty checkpoint": ("--ckpt_path=empty.ckpt", "empty.ckpt"),
    "text for a checkpoint": ("--ckpt_path=a_file", "a_file"),
    "a checkpoint of another network": ("--ckpt_path=other.ckpt", "size mismatch"),
    "a pickle for a checkpoint": ("--ckpt_path=pickle.ckpt", "more than plain types"),
    "no such config": ("--config=nowhere.yaml", "nowhere.yaml"),
    "binary YAML": ("--config=binary.yaml", "binary.yaml"),
    "broken YAML": ("--config=broken.yaml", "broken.yaml"),
    "a list for a config": ("--config=list.yaml", "list.yaml"),
    "a missing interpolation": ("--config=interpolated.yaml", "nowhere"),
    "an interpolation that is a circle": ("--config=circle.yaml", "interpolation"),
    "a base that is missing": ("--config=based.yaml", "nowhere.yaml"),
    "an unknown word": ("--nonsense", "nonsense"),
}


@pytest.fixture
def bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds one of each kind of file that is no good."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path("a_file").write_text("hello")
    Path("a_folder").mkdir()
    Path("empty.ckpt").touch()
    Path("binary.yaml").write_bytes(bytes(range(256)))
    Path("broken.yaml").write_text("a: [1, 2\nb: }")
    Path("list.yaml").write_text("[1, 2]")
    Path("interpolated.yaml").write_text("trainer: {max_epochs: '${nowhere.at_all}'}")
    Path("circle.yaml").write_text("trainer: {max_epochs: '${trainer.max_steps}', max_steps: '${trainer.max_epochs}'}")
    Path("based.yaml").write_text("base: nowhere.yaml")
    state = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": Classifier(MLP(24, 9, 1), task="binary").state_dict(),
        "loops": {},
        **{"epoch": 0, "global_step": 0, "callbacks": {}, "optimizer_states": [], "lr_schedulers": []},
    }
    torch.save(state, "other.ckpt")
    torch.save({**state, "module": MLP(24, 8, 1)}, "pickle.ckpt")
    return tmp_path


SOME = [*BAD][::6]
"""Those of the default tests; to start the command line takes a second."""


@pytest.mark.parametrize("name", [each if each in SOME else pytest.param(each, marks=pytest.mark.slow) for each in BAD])
def test_a_bad_command_line_ends_in_one_sentence(
    name: str, bad_files: Path, tiny_config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, told = BAD[name]
    try:
        code = main(["fit", f"--config={tiny_config}", *words.split()])
    except SystemExit as stop:
        code = stop.code
    said = capfd.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert told in line, line


def changed(config: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = yaml.safe_load(config.read_text())
    change(content)
    config.write_text(yaml.safe_dump(content))
    return config


def test_a_cache_variable_that_is_a_file(
    bad_files: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FPE_CACHE", "a_file")
    assert main(["fit", f"--config={tiny_config}", EMBEDDINGS]) == 2
    assert "a_file" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_traceback_is_shown_where_it_is_asked_for(
    how: str, bad_files: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FPE_TRACEBACK", "1" if how == "variable" else "0")
    words = ["fit", f"--config={tiny_config}", f"{DATA}.clauses=100", *(["--traceback"] if how == "flag" else [])]
    assert main(words) == 2
    assert "Traceback (most recent call last)" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("where", ["training", "last step"])
def test_a_signal_gives_its_code_and_a_checkpoint_to_resume_from(
    number: str, code: int, where: str, bad_files: Path, tiny_config: Path, write_config: Callable[..., Path]
) -> None:
    # A process of its own, as handlers of signals belong to it.
    step = 6 if where == "training" else 12
    script = bad_files / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "from fpe_lightning.cli import main\n"
        "class Signal(Callback):\n"
        "    def on_train_batch_end(self, trainer, *args):\n"
        f"        if trainer.global_step == {step}: os.kill(os.getpid(), signal.{number})\n"
        "if __name__ == '__main__': sys.exit(main())\n"
    )
    command = [sys.executable, str(script), "fit", f"--config={tiny_config}", "--trainer.callbacks+=__main__.Signal"]
    done = subprocess.run([*command], capture_output=True, text=True, cwd=bad_files, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    written = bad_files / "logs/tiny/run/checkpoints/terminated.ckpt"
    assert written.exists() == (number == "SIGTERM")
    if written.exists():
        assert torch.load(written, weights_only=True)["global_step"] == step
