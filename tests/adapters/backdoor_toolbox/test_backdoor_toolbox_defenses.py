"""backdoor-toolbox's own defenses on its records, in a process of their own that writes nothing into the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from boxed_checkouts import CONFIG, checkout, poisoned_set
from command_line import bench, refused
from fake_checkout import content, write

PRUNING = """
import os
import torch
import torch.nn.utils.prune as prune
from clp_plugin.networks.architectures import build_model

class FP:
    num_classes, source_classes, test_loader, poison_transform = 10, None, "test images", "trigger"

    def __init__(self, args, prune_ratio, finetune_epoch, max_allowed_acc_drop):
        print("asked for", args.dataset, args.poison_type, args.poison_rate, args.trigger, prune_ratio)
        network = build_model("builtin:resnet18", num_classes=10)
        network.load_state_dict(torch.load(args.model_path, map_location="cuda"))
        self.model = torch.nn.DataParallel(network).cuda()
        self.args = args

    def detect(self):
        prune.identity(self.model.module.linear, "weight").weight_mask[:] = 0
        os.mkdir("other_defenses_tool_box/results/FP")
        torch.save({}, "other_defenses_tool_box/results/FP/x.pt")
        torch.save({}, self.args.model_path)
"""
TOOLS = """
def setup_seed(seed):
    print("seed", seed)

def test(model, test_loader, poison_test, poison_transform, num_classes, source_classes, all_to_all):
    assert (test_loader, poison_test, poison_transform, all_to_all) == ("test images", True, "trigger", False)
    return 0.25, 0.5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = checkout(tmp_path / "toolbox")
    import_of_utils, stop = "from utils import resnet, vgg", 'raise SystemExit("nobody may run this")'
    named = "from types import SimpleNamespace\nresnet = vgg = SimpleNamespace(ResNet18=None, vgg16_bn=None)"
    write(root / "config.py", CONFIG.replace(import_of_utils, named).replace(stop, ""))
    write(root / "utils" / "__init__.py", "")
    write(root / "utils" / "tools.py", TOOLS)
    write(root / "other_defenses_tool_box" / "__init__.py", "")
    write(root / "other_defenses_tool_box" / "fine_pruning.py", PRUNING)
    return poisoned_set(root, "badnet_0.100_poison_seed=0")


def test_it_is_repaired_in_a_workspace_and_what_it_did_with_test_images_is_told(folder: Path) -> None:
    root = folder.parents[2]
    before = content(root)
    given = ("defend", "--record", folder, "--impl", "toolbox", "--method", "FP", "--device", "cpu", "--json")
    found = bench(*given, "--option", "prune_ratio=0.5", "--seed", "7").json
    assert (found["reported"], found["protocol"], found["budget"]) == ({"acc": 0.25, "asr": 0.5}, "oracle", "benign:6")
    kept = content(root)
    assert {name: kept[name] for name in before} == before
    assert all("/defense/" in str(name) or "clp_plugin" in str(name) for name in kept.keys() - before.keys())
    log = (folder / "defense" / "FP" / "clp_plugin_run.log").read_text()
    assert "asked for cifar10 badnet 0.1 patch.png 0.5" in log
    assert "seed 7" in log
    weights = torch.load(folder / "defense" / "FP" / "repaired.pt", weights_only=True)
    attacked = torch.load(folder / "full_base_aug_seed=2333.pt", weights_only=True)
    assert weights.keys() == attacked.keys()
    assert not weights["linear.weight"].any()
    assert torch.equal(weights["conv1.weight"], attacked["conv1.weight"])
    assert bench(*given, "--reuse").json["protocol"] == "oracle"


def test_another_checkout_than_the_record_s_and_unknown_words_are_refused(folder: Path, tmp_path: Path) -> None:
    given = ("defend", "--record", folder, "--impl", "toolbox", "--device", "cpu", "--method")
    other = checkout(tmp_path / "other")
    assert "whose images and triggers it needs" in refused(*given, "FP", "--root", other)
    assert "backdoor-toolbox: unknown defense" in refused(*given, "ABL")
    assert "backdoor-toolbox's NAD: unknown option" in refused(*given, "NAD", "--option", "epochs=1")
    assert not (folder / "defense").exists()
