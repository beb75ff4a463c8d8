"""Measure the memory of whole networks: the feed-forward halves of a transformer in training, and the split of GPT-2.

python -m benchmarks.memory_networks                 both tables
python -m benchmarks.memory_networks --layers 2      a smaller transformer

The first table is the peak of a process over three training steps, from before it built the network, as a ratio to the
dense network. The second is the resident memory of a process before, at the peak of, and after the split of every
feed-forward half of a GPT-2 (needs transformers).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks._pairs import HEADING, label
from benchmarks.memory import MEGA, in_process, reset_peak, resident
from fpe_lightning.expansion.config import BaseExpansion

TOKENS = 32
ALPHA = 4
WAYS = (
    fpe.Paper(alpha=ALPHA, layout="masked", outgoing="partition"),
    fpe.Paper(alpha=ALPHA, layout="folded"),
    fpe.Paper(alpha=ALPHA, layout="folded", outgoing="partition"),
    fpe.Blocks(alpha=ALPHA, outgoing="partition"),
)


class FeedForward(nn.Module):
    """The feed-forward half of a block of a transformer, with its residual connection."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x + down(gelu(up(norm(x))))``."""
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return out


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--mmap-threshold", type=int, default=2**20, help="bytes, of the first table; see memory")
    options = parser.parse_args()
    console = Console()
    before = dict(os.environ)
    if options.mmap_threshold:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(options.mmap_threshold)  # the measured processes read it
    console.print(_training(options.layers))
    os.environ.clear()
    os.environ.update(before)
    console.print(_splitting(options.layers))


def _training(layers: int) -> Table:
    table = Table(
        title=f"{layers} feed-forward halves, 768 x 3072, alpha {ALPHA}, AdamW, {TOKENS} tokens: peak in training"
    )
    table.add_column(HEADING)
    table.add_column("of the dense network", justify="right")
    (dense,) = in_process(partial(peak, layers, None))
    table.add_row("dense network", f"{dense / MEGA:.0f} MiB")
    for way in WAYS:
        (found,) = in_process(partial(peak, layers, way))
        table.add_row(label(way), f"{found / dense:.2f}x")
    return table


def network(layers: int) -> nn.Sequential:
    """The feed-forward halves of a transformer."""
    torch.manual_seed(0)
    return nn.Sequential(*(FeedForward(768, 3072) for _ in range(layers)))


def peak(layers: int, way: fpe.Expansion | None) -> tuple[float, ...]:
    """Growth of this process at the peak of three training steps, in bytes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.pt")
        in_process(partial(_save, layers, way, file))  # in another process, so that the split does not count
        x = torch.randn(TOKENS, 768)
        before = resident("VmRSS")
        reset_peak()
        model = network(layers)
        fpe.load_expanded_state_dict(model, torch.load(file, mmap=True))
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return (float(resident("VmHWM") - before),)


def _save(layers: int, way: fpe.Expansion | None, file: Path) -> tuple[float, ...]:
    model = network(layers)
    if way is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fpe.ExpansionWarning)
            fpe.expand(model, way, example_inputs=torch.zeros(1, 768))
    torch.save(model.state_dict(), file)
    return (0.0,)


def _splitting(layers: int) -> Table:
    table = Table(title=f"split of GPT-2, {layers} blocks, alpha 2: resident memory of the process, GiB")
    table.add_column(HEADING)
    for column in ("before", "peak", "after"):
        table.add_column(column, justify="right")
    ways: dict[str, BaseExpansion] = {
        "by shape": fpe.ByShape(),
        "masked": fpe.Paper(layout="masked"),
        "folded": fpe.Paper(layout="folded"),
    }
    for name, way in ways.items():
        found = in_process(partial(gpt2, layers, way))
        table.add_row(name, *(f"{size / 2**30:.2f}" for size in found))
    return table


def gpt2(layers: int, way: BaseExpansion) -> tuple[float, ...]:
    """Resident bytes before, at the peak of, and after the split of every feed-forward half of a GPT-2."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=9000, n_positions=128, n_layer=layers, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    model = GPT2Model(config).eval()
    found = fpe.find_sites(model, {"input_ids": torch.zeros(1, 8, dtype=torch.long)})
    before = resident("VmRSS")
    reset_peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fpe.ExpansionWarning)
        fpe.expand(model, way, sites=[site for site in found if site.width == 3072])
    return float(before), float(resident("VmHWM")), float(resident("VmRSS"))


if __name__ == "__main__":
    main()
