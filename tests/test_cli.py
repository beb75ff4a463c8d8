"""The command line: subcommands on a tiny task, overrides, resuming, and one sentence for a mistyped key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.cli import CLI
from fpe_lightning.command_line import unknown_key
from fpe_lightning.modules import Classifier

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture(autouse=True)
def in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a run without a logger writes where it stands


@pytest.fixture
def fitted(tiny_config: Path, tmp_path: Path) -> Path:
    """The last checkpoint of the tiny run, made after its split."""
    CLI(["fit", f"--config={tiny_config}", "--test_after_fit=false"])
    return tmp_path / "logs/tiny/run/checkpoints/last.ckpt"


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The whole config as ``--print_config`` prints it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        CLI([*args, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def split_of(cli: CLI) -> ExpansionCallback:
    return next(c for c in cli.trainer.callbacks if isinstance(c, ExpansionCallback))  # type: ignore[attr-defined]


def test_a_fit_is_followed_by_a_test_of_the_best_weights_and_a_table(
    tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CLI(["fit", f"--config={tiny_config}"])
    assert cli.model.network.layers[0].out_features in (8, 16)  # of the best checkpoint
    assert {"test/loss", "test/accuracy"} <= cli.trainer.callback_metrics.keys()
    output = capsys.readouterr().out
    for row in ("Summary", "width of network.layers.0", "8 -> 16", "209 -> 209", "best val/accuracy", "test/accuracy"):
        assert row in output


def test_a_fit_without_a_monitored_checkpoint_tests_the_last_weights(tiny_config: Path) -> None:
    cli = CLI(
        f"fit --config={tiny_config} --trainer.callbacks=[] --trainer.logger=false "
        "--trainer.enable_checkpointing=false --trainer.max_epochs=1".split()
    )
    assert "test/accuracy" in cli.trainer.callback_metrics


def test_no_test_after_the_fit_if_so_asked(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = CLI(["fit", f"--config={tiny_config}", "--test_after_fit=false"])
    assert "test/accuracy" not in cli.trainer.callback_metrics
    assert "Summary" not in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_take_a_checkpoint_made_after_the_split(verb: str, tiny_config: Path, fitted: Path) -> None:
    cli = CLI([verb, f"--config={tiny_config}", f"--ckpt_path={fitted}"])
    assert cli.model.network.layers[0].out_features == 16
    state = torch.load(fitted, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in cli.model.state_dict().items())
    if verb != "predict":
        assert f"{'val' if verb == 'validate' else verb}/accuracy" in cli.trainer.callback_metrics


def test_a_checkpoint_holds_plain_types_and_rebuilds_module_and_network_by_itself(fitted: Path) -> None:
    hyper_parameters = torch.load(fitted, weights_only=True)["hyper_parameters"]
    assert hyper_parameters["network"]["init_args"]["hidden"] == 8
    model = Classifier.load_from_checkpoint(fitted)
    assert model.network.layers[0].out_features == 16
    assert model.task == "binary"


def test_a_checkpoint_is_widened_by_the_class_of_its_module_and_resumes(tiny_config: Path, fitted: Path) -> None:
    wide = fitted.with_name("wide.ckpt")
    fpe.expand_checkpoint(fitted, wide, Classifier)
    args = [f"--config={tiny_config}", f"--ckpt_path={wide}", "--trainer.max_epochs=4", "--test_after_fit=false"]
    run = CLI(["fit", *args]).trainer
    assert run.current_epoch == 4
    assert run.lightning_module.network.layers[0].out_features == 32


def test_a_run_resumes_into_its_own_logger_version(tiny_config: Path, fitted: Path, tmp_path: Path) -> None:
    cli = CLI(
        f"fit --config={tiny_config} --ckpt_path={fitted} --trainer.max_epochs=5 --model.optimizer.lr=0.5 "
        "--test_after_fit=false".split()
    )
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.001  # state of the optimizer, which goes on
    assert cli.trainer.current_epoch == 5
    assert cli.trainer.global_step == 5 * 4
    assert [folder.name for folder in (tmp_path / "logs/tiny").iterdir()] == ["run"]
    saved = yaml.safe_load((tmp_path / "logs/tiny/run/config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 5


def test_config_and_command_line_win_over_the_hyper_parameters_of_a_checkpoint(tiny_config: Path, fitted: Path) -> None:
    cli = CLI(["test", f"--config={tiny_config}", f"--ckpt_path={fitted}", "--model.scheduler_interval=step"])
    assert cli.model.scheduler_interval == "step"
    with pytest.raises(ValueError, match=r"had shape \(8, 24\) there before its first split, and \(4, 24\) here"):
        CLI(["test", f"--config={tiny_config}", f"--ckpt_path={fitted}", "--model.network.hidden=4"])


def test_overrides_reach_model_data_and_trainer(tiny_config: Path, write_config: Callable[..., Path]) -> None:
    later = write_config("later", {"trainer": {"max_epochs": 7, "log_every_n_steps": 2}})
    cli = CLI(
        f"fit --config={tiny_config} --config={later} --trainer.log_every_n_steps=3 "
        "--model.init_args.network.init_args.hidden=5 --model.optimizer=AdamW --model.optimizer.lr=0.5 "
        "--data.init_args.batch_size=8 --trainer.fast_dev_run=true --test_after_fit=false".split()
    )
    assert cli.config["fit"]["trainer"]["max_epochs"] == 7  # a later file wins
    assert cli.config["fit"]["trainer"]["log_every_n_steps"] == 3  # the command line wins over files before it
    assert cli.model.hparams["network"]["init_args"]["hidden"] == 5
    assert cli.datamodule.batch_size == 8
    optimizer = cli.model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("by", ["flag", "file"])
def test_one_seed_reaches_callback_and_data(by: str, tiny_config: Path, write_config: Callable[..., Path]) -> None:
    seed = "--seed_everything=7" if by == "flag" else f"--config={write_config('seed', {'seed_everything': 7})}"
    cli = CLI(["fit", f"--config={tiny_config}", seed, "--trainer.fast_dev_run=true", "--test_after_fit=false"])
    assert split_of(cli).expansion.seed == 7
    assert cli.datamodule.hparams["seed"] == 7


def test_a_printed_config_parses_to_itself(
    tiny_config: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = printed(["fit", f"--config={tiny_config}", "--seed_everything=3"], capsys)
    assert config["trainer"]["callbacks"][0]["init_args"]["expansion"]["init_args"]["seed"] == 3
    assert printed(["fit", f"--config={write_config('printed', config)}"], capsys) == config


MISTYPED: list[tuple[list[str] | dict[str, Any], str]] = [
    (
        ["--model.network.init_args.hiden=16"],
        "Unknown key `hiden` for fpe_lightning.networks.MLP. Did you mean `hidden`?",
    ),
    (["--model.network.hiden=16"], "Unknown key `hiden` for fpe_lightning.networks.MLP. Did you mean `hidden`?"),
    (
        ["--model.optimzer=Adam"],
        "Unknown key `optimzer` for fpe_lightning.modules.Classifier. Did you mean `optimizer`?",
    ),
    (
        ["--model.optimizer=Adam", "--model.optimizer.lrr=1"],
        "Unknown key `lrr` for torch.optim.Adam. Did you mean `lr`?",
    ),
    (["--trainer.max_epochz=3"], "Unknown key `trainer.max_epochz`. Did you mean `trainer.max_epochs`?"),
    (
        ["--data.batchsize=3"],
        "Unknown key `batchsize` for fpe_lightning.data.BooleanDataModule. Did you mean `batch_size`?",
    ),
    (
        ["--trainer.callbacks.montor=3"],
        "Unknown key `montor` for fpe_lightning.callbacks.RunSummary. Did you mean `monitor`?",
    ),
    (
        ["--trainer.logger.savedir=x"],
        "Unknown key `savedir` for lightning.pytorch.loggers.TensorBoardLogger. Did you mean `save_dir`?",
    ),
    (["--modle.network.hidden=3"], "Unknown key `modle.network.hidden`. Did you mean `model.network.hidden`?"),
    (["--test_after_fitt=false"], "Unknown key `test_after_fitt`. Did you mean `test_after_fit`?"),
    (["--zzz=3"], "Unknown key `zzz`."),
    (
        ["--model.network=fpe_lightning.networks.MPL"],
        "Unknown class `MPL` in fpe_lightning.networks. Did you mean `MLP`?",
    ),
    ({"trainer": {"max_epoch": 3}}, "Unknown key `trainer.max_epoch`. Did you mean `trainer.max_epochs`?"),
    ({"trainr": {"max_epochs": 3}}, "Unknown key `trainr.max_epochs`. Did you mean `trainer.max_epochs`?"),
    ({"max_epochs": 3}, "Unknown key `max_epochs`. Did you mean `trainer.max_epochs`?"),
    (
        {"data": {"class_path": "fpe_lightning.data.BooleanDataModule", "init_args": {"clause": 3}}},
        "Unknown key `clause` for fpe_lightning.data.BooleanDataModule. Did you mean `clauses`?",
    ),
    (
        {
            "model": {
                "class_path": "fpe_lightning.modules.Classifier",
                "init_args": {"network": {"class_path": "fpe_lightning.networks.MLP", "init_args": {"hiden": 4}}},
            }
        },
        "Unknown key `hiden` for fpe_lightning.networks.MLP. Did you mean `hidden`?",
    ),
    (
        {
            "trainer": {
                "callbacks": [
                    {"class_path": "fpe_lightning.callbacks.ExpansionCallback", "init_args": {"alpa": 2, "epoch": 1}}
                ]
            }
        },
        "Unknown key `alpa` for fpe_lightning.callbacks.ExpansionCallback. Did you mean `alpha`?",
    ),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTYPED)
def test_a_mistyped_key_gets_one_sentence(
    mistake: list[str] | dict[str, Any],
    sentence: str,
    tiny_config: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = mistake if isinstance(mistake, list) else [f"--config={write_config('mistake', mistake)}"]
    with pytest.raises(SystemExit) as stop:
        CLI(["fit", f"--config={tiny_config}", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["fitt"], "Unknown subcommand `fitt`. Did you mean `fit`?"),
        (["--trainer.max_epochs=3", "fit"], "`trainer.max_epochs` has to come after the subcommand."),
    ],
)
def test_a_mistake_before_the_subcommand_gets_one_sentence(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        CLI(args)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_other_mistakes_keep_the_words_of_the_parser(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        CLI(["fit", f"--config={tiny_config}", "--trainer.max_epochs=many"])
    assert stop.value.code == 2
    assert "error: `trainer.max_epochs` cannot be many: Expected a <class 'int'>." in capsys.readouterr().err
    assert unknown_key('Parser key "trainer.max_epochs": Expected an int', ["trainer.max_epochs"]) is None


def test_a_run_without_a_logger_leaves_the_config_of_its_folder_alone(tiny_config: Path, tmp_path: Path) -> None:
    mine = tmp_path / "config.yaml"
    mine.write_text("my own\n")
    CLI(["fit", f"--config={tiny_config}", "--trainer.logger=false", "--test_after_fit=false"])
    assert mine.read_text() == "my own\n"


def test_shipped_classes_go_by_their_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    network = [
        "--model.network=WideSparseMLP",
        "--model.network.in_features=4",
        "--model.network.hidden=3",
        "--model.network.out_features=2",
    ]
    callback = ["--trainer.callbacks+=ExpansionCallback", "--trainer.callbacks.epoch=1"]
    config = printed(["fit", "--model=Classifier", *network, "--data=BooleanDataModule", *callback], capsys)
    assert config["model"]["class_path"].endswith("Classifier")
    assert config["model"]["init_args"]["network"]["class_path"].endswith("WideSparseMLP")
    assert config["data"]["class_path"].endswith("BooleanDataModule")
    assert config["trainer"]["callbacks"][0]["class_path"].endswith("ExpansionCallback")
