"""Scripts as TrojanZoo's users write them, on generated images, run with our methods in its registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_START = """
import argparse, json
import numpy as np
import torch, trojanvision

class Noise(trojanvision.datasets.ImageSet):
    name, num_classes, data_shape, valid_set = "noise", 4, [3, 32, 32], True
    class_names = ["a", "b", "c", "d"]

    def __init__(self, **given):
        super().__init__(**{**given, "normalize": False, "norm_par": None})

    def initialize(self): pass
    def check_files(self, **given): return True

    def pixels(self, mode):
        drawn = torch.Generator().manual_seed({"train": 1, "valid": 2}.get(mode, 3))
        pixels = torch.randint(0, 128, (40, 3, 32, 32), generator=drawn)
        for number in range(1, 4):  # a colour a class, which few batches teach
            pixels[number::4, number - 1] += 127
        return pixels

    def _get_org_dataset(self, mode, transform=None, **given):
        return [(image, number % 4) for number, image in enumerate(self.pixels(mode).float() / 255)]

trojanvision.datasets.class_dict["noise"] = Noise
parser = argparse.ArgumentParser()
for part in (trojanvision.environ, trojanvision.datasets, trojanvision.models, trojanvision.trainer, trojanvision.marks,
             trojanvision.attacks, trojanvision.defenses):
    part.add_argument(parser)
given = vars(parser.parse_args())
trojanvision.environ.create(**given)
dataset = trojanvision.datasets.create(**given)
model = trojanvision.models.create(dataset=dataset, **given)
mark = trojanvision.marks.create(dataset=dataset, **given)
attack = trojanvision.attacks.create(dataset=dataset, model=model, mark=mark, **given)
"""
_ARGUMENTS = [
    "--dataset", "noise", "--attack", "badnet", "--mark_height", "3", "--mark_width", "3", "--mark_height_offset", "28",
    "--target_class", "1", "--num_workers", "0", "--device", "cpu", "--batch_size", "20", "--valid_batch_size", "20",
]  # fmt: skip


def run_script(folder: Path, end: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a script that makes data set, model and attack, and goes on with ``end``, by ``bench toolbox register``."""
    (folder / "script.py").write_text(_START + end)
    command = [sys.executable, "-m", "clp_plugin", "toolbox", "register", "trojanzoo", "--", "script.py"]
    return subprocess.run(
        [*command, *_ARGUMENTS, *more], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
