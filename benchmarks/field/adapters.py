"""Adapters of PEFT on a split base model: they train, save and load next to it, and the base keeps its masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks.field.loops import save_plain, split_now
from benchmarks.field.project import Project, true_nonzeros

LAYERS = ["gate_proj", "up_proj", "down_proj"]
"""The split layers of a Llama, which all methods adapt."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 2}),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}),
    "rsLoRA": ("LoraConfig", {"r": 2, "use_rslora": True}),
    "PiSSA": ("LoraConfig", {"r": 2, "init_lora_weights": "pissa"}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 2, "target_r": 1, "total_step": 10}),
    "LoHa": ("LoHaConfig", {"r": 2}),
    "LoKr": ("LoKrConfig", {"r": 2}),
    "IA3": ("IA3Config", {"feedforward_modules": ["down_proj"]}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, "r": 0}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 8}),
    "VeRA": ("VeraConfig", {"r": 2}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 8}),
    "HRA": ("HRAConfig", {"r": 2}),
    "MiSS": ("MissConfig", {"r": 2}),
    "RandLoRA": ("RandLoraConfig", {"r": 2}),
    "VB-LoRA": ("VBLoRAConfig", {"r": 2, "num_vectors": 4, "vector_length": 8, "topk": 2}),
    "SHiRA": ("ShiraConfig", {"r": 2}),
    "C3A": ("C3AConfig", {"block_size": 8}),
    "WaveFT": ("WaveFTConfig", {"n_frequency": 8}),
    "DeLoRA": ("DeloraConfig", {"r": 2}),
    "RoAd": ("RoadConfig", {"group_size": 8}),
    "GraLoRA": ("GraloraConfig", {"r": 4, "gralora_k": 2}),
}
"""The config class of each method, and its smallest options. LN tuning and prompts follow without target layers."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LN tuning": ("LNTuningConfig", {"target_modules": ["post_attention_layernorm"]}),
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 2}),
    "prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 2}),
    "P-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 2, "encoder_hidden_size": 8}),
}


class Adapter(Project):
    """A Llama that is trained, split and trained on; then an adapter is trained on it.

    The adapter is saved by ``save_pretrained`` and loaded by ``PeftModel.from_pretrained`` onto a base that
    ``from_pretrained`` loads. Non-zeros are those of the base, which PEFT freezes. Resuming is loading and training on.
    The plain file is of the model that ``fpe.merge`` makes; prompts cannot be merged, nor trained on by PEFT.
    """

    packages = ("peft", "transformers")
    exact = False

    def __init__(self, name: str, config: str, options: dict[str, Any], targets: bool) -> None:
        self.name, self.plain = f"peft/{name}", targets or name == "LN tuning"
        self.config, self.options = config, dict(options)
        if targets:
            self.options["target_modules"] = list(LAYERS)

    def build(self) -> nn.Module:
        """The base."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **small))  # type: ignore[arg-type]

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Train the base, split it, put an adapter on it and train that."""
        import peft

        if resume is not None and not self.plain:
            raise NotImplementedError
        if resume is not None:
            with fpe.expanded_checkpoints():
                adapted = self.load(resume, trainable=True)
        else:
            base = self.build()
            self._steps(base, 2)
            split_now(callbacks, base, {"input_ids": self.ids()}, None)
            self._steps(base, 2)
            base.save_pretrained(str(folder / "base"))  # type: ignore[operator]
            self.base = set(map(id, base.parameters()))
            torch.manual_seed(1)
            kind = getattr(peft, self.config)
            adapted = peft.get_peft_model(base, kind(task_type="CAUSAL_LM", **self.options))
        self._steps(adapted, epochs)
        adapted.save_pretrained(str(folder / "adapter"))  # type: ignore[operator]
        if self.plain and resume is None:
            save_plain(callbacks, fpe.merge(copy.deepcopy(adapted)))
        return adapted

    def nonzeros(self, model: nn.Module) -> int:
        """Those of the base, which an adapter holds on to."""
        base = nn.ParameterList(each for each in model.parameters() if id(each) in self.base)
        return true_nonzeros(base)

    def _steps(self, model: nn.Module, steps: int) -> None:
        model.train()
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
        for _ in range(steps):
            model(input_ids=self.ids(), labels=self.ids()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def ids(self) -> Tensor:
        """A text."""
        return torch.arange(16).view(2, 8)

    def load(self, folder: Path, trainable: bool = False) -> nn.Module:
        """Base and adapter, each by ``from_pretrained``."""
        from peft import PeftModel
        from transformers import LlamaForCausalLM

        base = LlamaForCausalLM.from_pretrained(str(folder / "base"))
        return PeftModel.from_pretrained(base, str(folder / "adapter"), is_trainable=trainable)

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits."""
        with torch.no_grad():
            return model.eval()(input_ids=self.ids()).logits


PROJECTS: tuple[Callable[[], Project], ...] = tuple(
    partial(Adapter, name, *what, targets)
    for table, targets in ((METHODS, True), (OTHERS, False))
    for name, what in table.items()
)
