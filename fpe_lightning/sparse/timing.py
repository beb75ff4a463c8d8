"""How long layers of different layouts take on the same work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Generator, Tensor, nn

log = logging.getLogger(__name__)

ROUNDS, SECONDS = 7, 0.3
"""How often each layout is timed at least, and how long a comparison goes on if the rounds are short."""


def measure(layers: Mapping[str, nn.Module], reads: tuple[int, ...], training: bool) -> dict[str, float]:
    """The median seconds of each layer, which take turns so that a disturbance hits all alike.

    A layer that cannot run on such inputs is left out with a line in the log.

    Example:
        >>> sorted(measure({"masked": nn.Linear(4, 2), "other": nn.Linear(3, 2)}, (1, 4), training=False))
        ['masked']
    """
    weight = next(layer.get_parameter("weight") for layer in layers.values())
    x = torch.randn(reads, generator=Generator().manual_seed(0)).to(weight.device, weight.dtype)
    arms: dict[str, Callable[[], object]] = {}
    for name, layer in layers.items():
        run = _work(layer, x, training)
        try:
            run()
            run()
        except (TypeError, ValueError, RuntimeError) as error:
            if name == "masked":
                raise
            log.info("layout %s is left out: %s", name, str(error).splitlines()[0])
            continue
        arms[name] = run
    times: dict[str, list[float]] = {name: [] for name in arms}
    begin = time.perf_counter()
    while len(times["masked"]) < ROUNDS or time.perf_counter() - begin < SECONDS:
        for name, run in arms.items():
            _wait(x)
            start = time.perf_counter()
            run()
            _wait(x)
            times[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def _work(layer: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    if not training:
        layer.eval()
        return torch.inference_mode()(lambda: layer(x))
    layer.train().requires_grad_()
    optimizer = torch.optim.AdamW(layer.parameters())
    given = x.clone().requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        with torch.enable_grad():
            out = layer(given)
            out.backward(torch.ones_like(out))
        optimizer.step()

    return step


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
