"""A made-up checkout of BackdoorBench: the folders that the toolbox has, with scripts of a few lines, and a record.

The scripts imitate where the real ones look for things, not what they compute.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.records.exchange import RunRequest, ToolboxResult

MODEL, CLASSES = "squeezenet1_0", 3
LABELS = (2, 0, 1)  # of the triggered test images 0, 1, 2

# Takes the place of the launcher where bridges do not matter: they cost seconds.
DIRECT = """
import runpy, sys
from clp_plugin.adapters.driving.lifeline import end_with_parent
end_with_parent()
flags = [word for word in sys.argv[1:sys.argv.index("run")]]
sys.argv = sys.argv[sys.argv.index("run") + 1:]
runpy.run_path(sys.argv[0], run_name="__main__", init_globals={"FLAGS": flags})
"""

# Looks for everything as utils/save_load_attack.py does, then leaves a result that was made beforehand.
DEFENSE = """
import argparse, json, os, shutil, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--device", type=str)
parser.add_argument("--amp", type=lambda text: text in ("True", "true", "1"))
parser.add_argument("--num_workers", type=float)
parser.add_argument("--model", type=str)
parser.add_argument("--dataset", type=str)
parser.add_argument("--random_seed", type=int)
parser.add_argument("--epochs", type=int)
parser.add_argument("--rho", type=float, default=2.0)
parser.add_argument("--debug", action="store_true")
parser.add_argument("--yaml_path", type=str, default="./nowhere.yaml")
parser.add_argument("--result_file", type=str)
parser.add_argument("--do", type=str, default="end well")
parser.add_argument("--note", type=str)
args = parser.parse_args()
pt = os.path.realpath(os.path.join("record", args.result_file, "attack_result.pt"))
data = pt[: pt.index("record")] + STORED[STORED.index("data") :]
image = os.path.join("./record", NAME, "bd_test_dataset", "2", "0.png")
save_path = "record/" + args.result_file + "/defense/" + METHOD
os.makedirs(save_path + "/log")
seen = {
    "argv": sys.argv, "args": vars(args), "data": os.listdir(data), "image": open(image, errors="replace").read(),
    "cwd": os.getcwd(), "pid": os.getpid(),
    "weights": os.path.getsize(pt), "yaml": open(args.yaml_path).read(), "flags": FLAGS,
    "earlier": os.listdir(save_path + "/.."), "beside": os.listdir(".."), "home": os.listdir("."),
}
print("working in", os.getcwd(), flush=True)
with open(save_path + "/log/seen.json", "w") as file:
    json.dump(seen, file)
if args.do == "overwrite":
    open(pt, "r+b").write(b"spoilt")
if args.do == "crash":
    raise ValueError("the loss is not a number")
if args.do == "hang":
    time.sleep(600)
if args.do != "leave nothing":
    made = "resource/empty.pt" if args.do == "leave an empty result" else "resource/made.pt"
    shutil.copy(made, save_path + "/defense_result.pt")
with open(save_path + "/" + SUMMARY, "w") as file:
    file.write(",test_acc,test_asr,test_ra\\nlast,0.5,0.25,0.125\\n")
print("done")
"""

ATTACK = """
import argparse, json, os, sys
sys.path.insert(0, ".")
from attack.prototype import add_arguments
from attack.badnet import add_common_attack_args
parser = add_common_attack_args(add_arguments(argparse.ArgumentParser()))
parser.add_argument("--alpha", type=float)
args = parser.parse_args()
place = "record/" + args.save_folder_name
os.mkdir(place)
with open(place + "/seen.json", "w") as file:
    data = os.listdir(args.dataset_path + "/" + args.dataset)
    json.dump({"args": vars(args), "data": data, "records": os.listdir("record")}, file)
if args.alpha == 0:
    raise ValueError("alpha must not be 0")
if args.alpha != 1:
    open(place + "/attack_result.pt", "w").write("weights")
"""

PROTOTYPE = """
def add_arguments(parser):
    parser.add_argument("--yaml_path", type=str)
    parser.add_argument("--device", type=str)
    parser.add_argument("--amp", type=str)
    parser.add_argument("--num_workers", type=int)
    parser.add_argument("--dataset", type=str)
    parser.add_argument("--dataset_path", type=str)
    parser.add_argument("--random_seed", type=int)
    parser.add_argument("--save_folder_name", type=str)
    parser.add_argument("--epochs", type=int)
    return parser
"""

BADNET = """
def add_common_attack_args(parser):
    parser.add_argument("--pratio", type=float)
    parser.add_argument("--attack_target", type=int)
    parser.add_argument("--attack_label_trans", type=str)
    return parser
"""


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def fake_checkout(root: Path, *, stored: str = "eins", data_path: str = "./data/cifar10") -> Path:
    """A checkout with scripts for ft, ft-sam, anp and bnp, and the attacks badnet and blended.

    Args:
        root: To be made.
        stored: The name under which the record's images are looked for.
        data_path: As the record has it.
    """
    summaries = {"ft": "ft_df_summary.csv", "ft-sam": "log/d-sam_df_summary.csv", "anp": "anp_df_summary.csv"}
    for method, summary in {**summaries, "bnp": "bnp_df_summary.csv"}.items():
        facts = f"STORED, NAME, METHOD, SUMMARY = {data_path!r}, {stored!r}, {method!r}, {summary!r}\n"
        write(root / "defense" / f"{method}.py", facts + DEFENSE)
        write(root / "config" / "defense" / method / "config.yaml", "dataset: wrong\nratio: 0.05\nfrom: config\n")
    write(
        root / "config" / "defense" / "ft-sam" / "cifar10.yaml",
        "dataset: wrong\nratio: 0.1\nrho: 7\nmodel: wrong\nepochs: 3\nfrom: cifar10\n",
    )
    write(root / "config" / "attack" / "prototype" / "cifar10.yaml", "dataset: cifar10\n")
    write(root / "attack" / "prototype.py", PROTOTYPE)
    write(root / "attack" / "badnet.py", BADNET)
    write(root / "attack" / "blended.py", ATTACK)
    write(root / "utils" / "save_load_attack.py")
    write(root / "data" / "cifar10" / "cifar-10-batches-py" / "test_batch", "pixels")
    write(root / "direct.py", DIRECT)
    made = {"model_name": MODEL, "num_classes": CLASSES, "model": build(MODEL, CLASSES).state_dict()}
    (root / "resource").mkdir()
    torch.save(made, root / "resource" / "made.pt")
    torch.save({}, root / "resource" / "empty.pt")
    return root


def fake_attack_record(
    folder: Path, *, stored: str = "eins", data_path: str = "./data/cifar10", model: str = MODEL
) -> Path:
    """A record as the toolbox stores it, whose name may have been ``stored`` when it was made; without bd_train."""
    home = f"./record/{stored}/bd_test_dataset"
    entries = {np.int64(i): {"path": f"{home}/{y}/{i}.png", "other_info": [1, y]} for i, y in enumerate(LABELS)}
    for index, label in enumerate(LABELS):
        write(folder / "bd_test_dataset" / str(label) / f"{index}.png", f"image {index}")
    poisoned: dict[str, Any] = {
        "bd_data_container": {"save_folder_path": home, "data_dict": entries, "save_file_format": ".png"},
        "original_index_array": np.arange(len(LABELS)),
        "poison_indicator": np.ones(len(LABELS)),
    }
    content = {
        "model_name": model, "num_classes": CLASSES, "model": {"weight": torch.zeros(2)}, "data_path": data_path,
        "img_size": (32, 32, 3), "clean_data": "cifar10", "bd_train": None, "bd_test": poisoned,
    }  # fmt: skip
    torch.save(content, folder / "attack_result.pt")
    write(folder / "20260101.log", "trained")
    return folder


def without_bridges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts start at once, in an interpreter as it is, and whatever lies in a checkout passes for a data set."""
    monkeypatch.setattr("clp_plugin.adapters.backdoorbench.toolbox_facts.LAUNCHER", "direct")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


def content(root: Path) -> Mapping[str, bytes]:
    """Every file below a folder with its bytes, and every empty folder."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    empty = (path for path in root.rglob("*") if path.is_dir() and not any(path.iterdir()))
    return found | {f"{path.relative_to(root)}/": b"" for path in empty}


def run_defense(record: Path, method: str = "ft", *, force: bool = False, **options: object) -> ToolboxResult:
    """A defense of the toolbox on a record, run by its own script."""
    lines: list[str] = []
    return BackdoorBench().run_defense(record, method, RunRequest(options, force=force, report=lines.append))


def but(files: Mapping[str, bytes], *prefixes: str) -> dict[str, bytes]:
    """The files whose names do not begin so."""
    return {name: data for name, data in files.items() if not name.startswith(prefixes)}
