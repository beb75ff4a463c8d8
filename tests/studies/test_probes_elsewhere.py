"""The shipped probe study goes on other pictures by changing keys of its setting, as it would to ImageNet."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from studies.__main__ import main

ARMS = "{dense: Dense, wide_sparse: WideSparse, random_incoming: {expansion: {prune: incoming}}}"


@pytest.mark.parametrize("config", ["clip_probe", "clip_probe_alpha_8"])
def test_two_keys_take_the_shipped_config_to_a_folder_of_pictures(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPE_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val"):
        for label, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(10):
                picture = Image.new("RGB", (12, 10), (80 * label, 20 * number, len(split)))
                picture.save(tmp_path / "pictures" / split / name / f"{number}.png")
    keys = {"dataset": "image_folder", "data_dir": str(tmp_path / "pictures"), "epochs": "4", "split": "2"}
    words = [f"--settings.glyphs.{key}={value}" for key, value in keys.items()]
    console = Console(file=io.StringIO(), width=300)
    grid = "--grid=[{hidden: [2], alpha: [2]}]"
    some = ["--settings.glyphs.rates={}", f"--arms={ARMS}", "--seeds=1", grid]
    where = f"--output={tmp_path / 'out'}"
    code = main(["clip_probe", f"--config=configs/studies/{config}.yaml", *words, *some, where], console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert code == 0, said
    assert "3 runs, 0 failed" in said
    assert "| random_incoming |" in (tmp_path / "out" / "table.md").read_text()
