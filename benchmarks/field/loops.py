"""Projects with a loop of their own: accelerate, the Trainer of transformers, and litgpt by Fabric."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks.field.project import SPLIT, Project, Split, true_nonzeros


def split_now(callbacks: Sequence[Split], model: nn.Module, inputs: Any, optimizer: Any) -> None:
    """Split in a loop, and note down what the callback would."""
    for each in callbacks:
        each.left_out = fpe.find_sites(model, inputs, explain=True)[1]
        each.reports.append(fpe.expand(model, alpha=2, example_inputs=inputs, optimizer=optimizer))
        each.after = true_nonzeros(model)


def save_plain(callbacks: Sequence[Split], model: nn.Module) -> None:
    """Write the plain file, as the callback does at the end of a fit."""
    for each in callbacks:
        if each.result.plain_file is not None:
            fpe.save_plain(model, each.result.plain_file)


class Accelerate(Project):
    """A loop with ``prepare``, gradient accumulation, ``save_state`` and ``load_state``."""

    name = "accelerate"
    packages = ("accelerate",)

    def build(self) -> nn.Module:
        """Three layers."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Four batches an epoch, two for each step."""
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = self.build()
        x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        loader: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :4]), batch_size=16)
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 4)
        model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
        if resume is not None:
            with fpe.expanded_checkpoints():
                accelerator.load_state(str(resume / "state"))
        for epoch in range(0 if resume is None else epochs - 1, epochs):
            if epoch == SPLIT:
                split_now(callbacks, model, x[:1], optimizer)
            for inputs, targets in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
        accelerator.save_state(str(folder / "state"))
        accelerator.save_model(model, str(folder / "model"))
        save_plain(callbacks, model)
        return model

    def load(self, folder: Path) -> nn.Module:
        """``load_checkpoint_in_model`` of what ``save_model`` wrote."""
        from accelerate import load_checkpoint_in_model

        model = self.build()
        load_checkpoint_in_model(model, str(folder / "model"))
        return model

    def outputs(self, model: nn.Module) -> Tensor:
        """Outputs of two samples."""
        with torch.no_grad():
            return model.eval()(torch.linspace(-1, 1, 64).view(2, 32))


class HuggingFaceTrainer(Project):
    """BERT in the Trainer of transformers, split in one of its callbacks; ``resume_from_checkpoint``."""

    name = "transformers.Trainer"
    packages = ("transformers", "accelerate")

    def build(self) -> nn.Module:
        """A small classifier."""
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 4, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
        return BertForSequenceClassification(BertConfig(**small))  # type: ignore[arg-type]

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Train and ``save_pretrained``."""
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        class AtEpoch(TrainerCallback):
            """Splits before the second epoch; a resumed run is split already."""

            def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                if round(state.epoch) == SPLIT and state.global_step:
                    split_now(callbacks, given["model"], {"input_ids": ids[:1]}, given["optimizer"])

        ids = torch.randint(64, (32, 8), generator=torch.Generator().manual_seed(0))
        data = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
        arguments = TrainingArguments(
            output_dir=str(folder / "runs"),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            save_strategy="epoch",
            use_cpu=True,
            report_to=[],
            lr_scheduler_type="constant",
            logging_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        model = self.build()
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[AtEpoch()])
        trainer.remove_callback(PrinterCallback)
        last = None if resume is None else max((resume / "runs").glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
        with nullcontext() if last is None else fpe.expanded_checkpoints():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        model.save_pretrained(str(folder / "bert"))  # type: ignore[operator]
        save_plain(callbacks, model)
        return model

    def load(self, folder: Path) -> nn.Module:
        """``AutoModelForSequenceClassification.from_pretrained``."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(str(folder / "bert"))

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits."""
        with torch.no_grad():
            return model.eval()(input_ids=torch.arange(16).view(2, 8)).logits


class LitGPT(Project):
    """A small Llama of litgpt trained by Fabric, as its ``pretrain``; loaded by its ``load_checkpoint``."""

    name = "litgpt"
    packages = ("litgpt",)

    def build(self) -> nn.Module:
        """One block."""
        from litgpt import GPT, Config

        torch.manual_seed(0)
        small = {"block_size": 16, "vocab_size": 64, "padded_vocab_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
        return GPT(Config(intermediate_size=64, mlp_class_name="LLaMAMLP", **small))

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """``fabric.setup``, ``fabric.backward``, ``fabric.save``."""
        import lightning as L

        fabric = L.Fabric(accelerator="cpu", devices=1)
        inner = self.build()
        model: Any = fabric.setup(inner)
        optimizer: Any = fabric.setup_optimizers(torch.optim.AdamW(inner.parameters(), lr=1e-3))
        ids = torch.randint(64, (4, 4, 9), generator=torch.Generator().manual_seed(0))
        state = {"model": model, "optimizer": optimizer}
        if resume is not None:
            with fpe.expanded_checkpoints():
                fabric.load(str(resume / "lit_model.pth"), state)
        for epoch in range(0 if resume is None else epochs - 1, epochs):
            if epoch == SPLIT:
                split_now(callbacks, inner, ids[0, :, :-1], optimizer)
            for batch in ids:
                loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
                fabric.backward(loss)
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
        fabric.save(str(folder / "lit_model.pth"), state)
        save_plain(callbacks, inner)
        return inner

    def load(self, folder: Path) -> nn.Module:
        """``litgpt.utils.load_checkpoint`` into a model made by ``fabric.init_module``."""
        import lightning as L
        from litgpt.utils import load_checkpoint

        fabric = L.Fabric(accelerator="cpu", devices=1)
        with fabric.init_module(empty_init=True):
            model = self.build()
        load_checkpoint(fabric, fabric.setup(model), folder / "lit_model.pth")
        return model

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits."""
        with torch.no_grad():
            return model.eval()(torch.arange(16).view(2, 8))


PROJECTS: tuple[type[Project], ...] = (Accelerate, HuggingFaceTrainer, LitGPT)
