"""``bench scan`` on checkpoints of a user: the JSON contract, the files, and what a mistake gets."""

from __future__ import annotations

import json
import os
import pickle
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import LAYER, bench, refused, without
from csv_tables import csv_table
from torch import nn

from clp_plugin.files.checkpoints import load_checkpoint, save_weights
from clp_plugin.masking.apply import load_mask
from clp_plugin.networks.architectures import build_model


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Architectures and checkpoints of a user."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "nets.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        def small(num_classes=4):
            return nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

        def no_norm():
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

        def grouped():
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                 nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

        class Dense(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
                self.norm, self.fc = nn.BatchNorm2d(11), nn.Linear(11, 4)

            def forward(self, x):
                return self.fc(self.norm(torch.cat([self.one(x), self.two(x)], 1)).relu().mean((2, 3)))

        class Two(nn.Module):
            def __init__(self, num_classes=4):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, num_classes)

            def forward(self, x, mask):
                return self.fc((self.conv(x) * mask).mean((2, 3)))

        class OnGpu(Two):
            def forward(self, x):
                if not torch.cuda.is_available():
                    raise RuntimeError("Found no NVIDIA driver on your system.")  # as x.cuda() does
                return super().forward(x.cuda(), 1)

        class Broken(nn.Module):
            def __init__(self):
                raise KeyError("no such config")
        """)
    )
    torch.manual_seed(0)
    model = small(folder)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "small.pt")
    return folder


def small(zoo: Path, name: str = "small") -> nn.Module:
    model = build_model(f"{zoo / 'nets.py'}:{name}", num_classes=4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def arch(zoo: Path, name: str = "small") -> list[str]:
    return ["--arch", f"{zoo / 'nets.py'}:{name}", "--input-size", "3,16,16"]


def test_scan_json_is_the_contract(zoo: Path) -> None:
    found = bench("scan", zoo / "small.pt", *arch(zoo), "--u", "1.0", "--json").json
    assert list(found) == ["u", "seconds", "layers", "not_scored", "loaded"]
    assert found["u"] == 1.0
    assert 0 < found["seconds"] < 60
    assert [list(layer) for layer in found["layers"]] == [LAYER] * 3
    names = dict(build_model(f"{zoo / 'nets.py'}:small", num_classes=4).named_modules())
    kinds = [(layer["name"], layer["kind"], layer["conv"], layer["norm"]) for layer in found["layers"]]
    assert kinds == [("1", "fused", "0", "1"), ("3", "conv", "3", None), ("7", "head", "7", None)]
    for layer in found["layers"]:
        assert layer["name"] in names
        assert len(layer["sigma"]) == layer["channels"]
        sigma = np.array(layer["sigma"])
        expected = np.flatnonzero(sigma > sigma.mean() + sigma.std()).tolist() if layer["kind"] == "fused" else []
        assert layer["pruned"] == expected
    assert any(layer["pruned"] for layer in found["layers"])


def test_lone_convolutions_are_pruned_when_asked_for(zoo: Path) -> None:
    command = ("scan", zoo / "small.pt", *arch(zoo), "--u", "1")
    shown = bench(*command)
    assert "; not pruned" in next(line for line in shown.out.splitlines() if " conv " in line)
    found = bench(*command, "--layers", "fused,diagonal,conv", "--json").json
    sigma = np.array(found["layers"][1]["sigma"])
    assert found["layers"][1]["pruned"] == np.flatnonzero(sigma > sigma.mean() + sigma.std()).tolist() != []
    assert bench(*command, "--layers", "head").code == 2


def test_scan_sigma_is_the_spectral_norm_of_the_fused_kernel(zoo: Path) -> None:
    state = {key: tensor.double().numpy() for key, tensor in load_checkpoint(zoo / "small.pt").items()}
    gain = np.abs(state["1.weight"]) / np.sqrt(state["1.running_var"] + 1e-5)
    expected = [
        np.linalg.svd(g * kernel.reshape(3, 9))[1][0] for g, kernel in zip(gain, state["0.weight"], strict=True)
    ]
    found = bench("scan", zoo / "small.pt", *arch(zoo), "--json").json
    np.testing.assert_allclose(found["layers"][0]["sigma"], expected, rtol=1e-5)


def test_scan_names_all_convolutions_of_a_concatenation(zoo: Path) -> None:
    save_weights(small(zoo, "Dense").state_dict(), zoo / "dense.safetensors")
    layers = bench("scan", zoo / "dense.safetensors", *arch(zoo, "Dense"), "--json").json["layers"]
    assert layers[0]["conv"] == ["one", "two"]
    assert layers[0]["name"] == layers[0]["norm"] == "norm"
    assert layers[1]["conv"] == "fc"


def test_scan_of_a_published_architecture_knows_its_size_and_classes(tmp_path: Path) -> None:
    model = build_model("torchvision:shufflenet_v2_x0_5", num_classes=7)
    torch.save({f"module.{key}": tensor for key, tensor in model.state_dict().items()}, tmp_path / "x.pth")
    found = bench("scan", tmp_path / "x.pth", "--arch", "torchvision:shufflenet_v2_x0_5", "--json").json
    assert found["u"] == 3.0
    names = dict(model.named_modules())
    assert all(layer["name"] in names for layer in found["layers"])
    assert found["layers"][-1]["kind"] == "head"
    assert found["layers"][-1]["channels"] == 7


def test_scan_writes_table_figure_and_mask(zoo: Path, tmp_path: Path) -> None:
    result = bench("scan", zoo / "small.pt", *arch(zoo), "--u", "1", "--out", tmp_path)
    assert result.code == 0
    assert "outlying channels" in result.out
    assert {p.name for p in tmp_path.iterdir()} == {"scores.csv", "mask.json", "scores.png", "scores.pdf"}
    rows = csv_table(tmp_path / "scores.csv", dtype={"layer": str})
    assert list(rows.columns) == ["layer", "kind", "channel", "sigma", "pruned"]
    assert len(rows) == 12 + 16 + 4
    mask = load_mask(tmp_path / "mask.json")
    marked = rows[rows["pruned"]]
    assert {name: group["channel"].tolist() for name, group in marked.groupby("layer")} == mask.indices()
    assert (tmp_path / "scores.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "scores.pdf").read_bytes()[:4] == b"%PDF"


def test_scan_with_json_writes_no_file_unless_asked(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench("scan", zoo / "small.pt", *arch(zoo), "--json").json  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_repaired_checkpoint_loads_and_is_the_masked_model(zoo: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"repaired{suffix}"
    before = (zoo / "small.pt").read_bytes()
    result = bench("scan", zoo / "small.pt", *arch(zoo), "--u", "1", "--repair", out, "--json")
    pruned = {layer["name"]: layer["pruned"] for layer in result.json["layers"]}
    repaired = load_checkpoint(out)
    original = load_checkpoint(zoo / "small.pt")
    assert not repaired["1.weight"][pruned["1"]].any()
    assert not repaired["1.bias"][pruned["1"]].any()
    assert not repaired["3.weight"][pruned["3"]].any()
    kept = [k for k in range(12) if k not in pruned["1"]]
    assert torch.equal(repaired["1.weight"][kept], original["1.weight"][kept])
    assert torch.equal(repaired["7.weight"], original["7.weight"])
    assert (zoo / "small.pt").read_bytes() == before
    again = bench("scan", out, *arch(zoo), "--u", "1", "--json")
    assert again.code == 0


def test_scan_never_overwrites_the_checkpoint_it_reads(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)
    line = refused("scan", zoo / "small.pt", *arch(zoo), "--repair", "small.pt")
    assert "is the checkpoint itself" in line
    assert "expected a name ending in .safetensors" in refused(
        "scan", zoo / "small.pt", *arch(zoo), "--repair", "x.onnx"
    )


@pytest.mark.parametrize("kind", ["link", "hard link", "somebody else's", "a folder"])
def test_repair_replaces_nothing_that_it_did_not_write(zoo: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.pt"
    if kind == "link":
        out.symlink_to(zoo / "small.pt")
    elif kind == "hard link":
        out.hardlink_to(zoo / "small.pt")
    elif kind == "a folder":
        out.mkdir()
    else:
        out.write_bytes((zoo / "small.pt").read_bytes())
    before = (zoo / "small.pt").read_bytes(), sorted(tmp_path.rglob("*"))
    refused("scan", zoo / "small.pt", *arch(zoo), "--repair", out)
    assert ((zoo / "small.pt").read_bytes(), sorted(tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_repair_replaces_what_it_wrote(zoo: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    for u in (3, 1):
        assert bench("scan", zoo / "small.pt", *arch(zoo), "--u", u, "--repair", out, "--json").code == 0
    once = tmp_path / f"once{suffix}"
    assert bench("scan", zoo / "small.pt", *arch(zoo), "--u", 1, "--repair", once, "--json").code == 0
    assert out.read_bytes() == once.read_bytes()


def test_scan_twice_gives_the_same_numbers(zoo: Path) -> None:
    first, second = (bench("scan", zoo / "small.pt", *arch(zoo), "--json").json for _ in range(2))
    assert without(first, "seconds") == without(second, "seconds")


def test_scan_verify_adds_what_was_checked(zoo: Path) -> None:
    found = bench("scan", zoo / "small.pt", *arch(zoo), "--verify", "--json").json
    assert list(found["verified"]) == ["relative_error", "replaced", "perturbed"]
    assert found["verified"]["relative_error"] < 1e-9


def test_scan_parity_and_other_scores_are_other_numbers(zoo: Path) -> None:
    options: list[list[str]] = [[], ["--parity"], ["--score", "relative"], ["--norm", "exact"]]
    found = [bench("scan", zoo / "small.pt", *arch(zoo), *extra, "--json").json["layers"] for extra in options]
    assert len({json.dumps(layers[0]["sigma"]) for layers in found}) == len(options)
    assert [layer["name"] for layer in found[1]] == ["1"], "the published rule sees BatchNorms only"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scan_of_half_precision_repairs_in_half_precision(zoo: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(small(zoo).to(dtype).state_dict(), tmp_path / "half.pt")
    out = tmp_path / "repaired.safetensors"
    assert bench("scan", tmp_path / "half.pt", *arch(zoo), "--u", "1", "--repair", out, "--json").code == 0
    assert load_checkpoint(out)["0.weight"].dtype == dtype


def test_scan_of_wrapped_nested_and_normless_checkpoints_works(zoo: Path, tmp_path: Path) -> None:
    state = small(zoo).state_dict()
    for i, prefix in enumerate(("module.", "_orig_mod.", "module._orig_mod.")):
        torch.save({"net": {prefix + key: tensor for key, tensor in state.items()}}, tmp_path / f"{i}.pt")
        assert bench("scan", tmp_path / f"{i}.pt", *arch(zoo), "--json").json["layers"][0]["name"] == "1"
    save_weights(small(zoo, "no_norm").state_dict(), tmp_path / "plain.safetensors")
    found = bench("scan", tmp_path / "plain.safetensors", *arch(zoo, "no_norm"), "--json")
    assert [layer["kind"] for layer in found.json["layers"]] == ["conv", "head"]
    note = "note: this network has no BatchNorm; its convolutions are pruned only with --layers fused,diagonal,conv"
    assert note in found.err.splitlines()


def test_scan_names_what_it_does_not_score_and_why(zoo: Path, tmp_path: Path) -> None:
    save_weights(small(zoo, "grouped").state_dict(), tmp_path / "grouped.safetensors")
    command = ("scan", tmp_path / "grouped.safetensors", *arch(zoo, "grouped"))
    reason = "native_group_norm behind it undoes any scale of its kernel"
    assert bench(*command, "--json").json["not_scored"] == [
        {"name": "0", "why": reason},
        {"name": "4", "why": "a linear map inside the network that no BatchNorm follows"},
    ]
    shown = bench(*command, "--out", tmp_path / "out")
    assert reason in " ".join(shown.out.split())
    assert "1 linear maps inside the network have no BatchNorm" in shown.err


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_scan_of_a_malicious_pickle_runs_nothing_and_names_the_global(zoo: Path, tmp_path: Path) -> None:
    victim = tmp_path / "owned"
    torch.save({"state_dict": small(zoo).state_dict(), "x": Payload(victim)}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(victim)))
    for name in ("evil.pt", "evil.pkl"):
        line = refused("scan", tmp_path / name, *arch(zoo), "--json")
        assert f"{os.mkdir.__module__}.mkdir" in line
        assert "--trust" in line
        assert not victim.exists()


def test_scan_mistakes(zoo: Path, tmp_path: Path) -> None:
    checkpoint = zoo / "small.pt"
    whole = checkpoint.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    broken = small(zoo)
    with torch.no_grad():
        broken[0].weight[2] = float("nan")  # type: ignore[operator,index]
    save_weights(broken.state_dict(), tmp_path / "nan.pt")
    assert "may be truncated" in refused("scan", tmp_path / "cut.pt", *arch(zoo))
    assert "may be truncated" in refused("scan", tmp_path / "cut.safetensors", *arch(zoo))
    assert "is empty (0 bytes)" in refused("scan", tmp_path / "empty.pt", *arch(zoo))
    assert "is a folder" in refused("scan", tmp_path, *arch(zoo))
    assert "No such file" in refused("scan", tmp_path / "missing.pt", *arch(zoo))
    assert "layer '1'" in refused("scan", tmp_path / "nan.pt", *arch(zoo))
    assert "NaN or Inf in 1 of 12 channels (first: 2)" in refused("scan", tmp_path / "nan.pt", *arch(zoo))
    wrong = refused("scan", checkpoint, *arch(zoo, "no_norm"))
    assert "'0.weight'" in wrong
    assert "(8, 3, 3, 3)" in wrong
    assert "(12, 3, 3, 3)" in wrong
    assert "'7.weight'" in refused("scan", checkpoint, *arch(zoo), "--num-classes", "9")
    assert "expected at least 1 class" in refused("scan", checkpoint, *arch(zoo), "--num-classes", "0")


def test_scan_mistakes_about_the_architecture_and_the_options(zoo: Path) -> None:
    checkpoint = zoo / "small.pt"
    assert "say what they are weights of, with --arch" in refused("scan", checkpoint)
    assert "perhaps torchvision:resnet18" in refused("scan", checkpoint, "--arch", "resnet18")
    assert "close: resnet50" in refused("scan", checkpoint, "--arch", "torchvision:resnet55")
    assert "known: preactresnet18" in refused("scan", checkpoint, "--arch", "builtin:nope")
    assert "has no callable 'nope'" in refused("scan", checkpoint, *arch(zoo, "nope"))
    assert "no such config" in refused("scan", checkpoint, *arch(zoo, "Broken"))
    assert "there is no file" in refused("scan", checkpoint, "--arch", zoo / "missing.py:net")
    for size in ("32", "3,32", "3,0,32", "a,b,c", "3,32,32,1"):
        assert "expected C,H,W such as 3,32,32" in refused("scan", checkpoint, *arch(zoo)[:2], "--input-size", size)
    assert "cannot be run on one input" in refused("scan", checkpoint, *arch(zoo)[:2], "--input-size", "4,16,16")
    assert "u must be 0 or more" in refused("scan", checkpoint, *arch(zoo), "--u", "-1")
    assert "u must be 0 or more" in refused("scan", checkpoint, *arch(zoo), "--u", "nan")
    assert "parity mode has only" in refused("scan", checkpoint, *arch(zoo), "--parity", "--score", "relative")


def test_scan_names_what_helps(zoo: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "x.pt"
    torch.save(build_model(f"{zoo / 'nets.py'}:Two", num_classes=4).state_dict(), checkpoint)
    several = refused("scan", checkpoint, *arch(zoo, "Two"))
    assert "wrap it in a module" in several
    assert "--input-size" not in several
    gpu = refused("scan", checkpoint, *arch(zoo, "OnGpu"))
    assert ".to(x.device)" in gpu
    assert "--input-size" not in gpu
    size = refused("scan", zoo / "small.pt", *arch(zoo)[:2], "--input-size", "1,16,16")
    assert "--input-size C,H,W" in size
    options = refused("scan", checkpoint, *arch(zoo), "--num-classes", "3")
    assert all(option in options for option in ("--arch", "--arch-option", "--num-classes"))


def test_scan_says_that_a_variance_is_negative(zoo: Path, tmp_path: Path) -> None:
    state = small(zoo).state_dict()
    state["1.running_var"][5] = -1
    save_weights(state, tmp_path / "x.pt")
    line = refused("scan", tmp_path / "x.pt", *arch(zoo))
    assert "running variance of 1 is negative in 1 of 12 channels (first: 5)" in line
    assert "NaN" not in line


def test_scan_says_what_it_took_and_guessed_and_verified(zoo: Path, tmp_path: Path) -> None:
    states = {"netC": small(zoo).state_dict(), "netC_ema": small(zoo).state_dict()}
    torch.save({**states, "epoch": 3}, tmp_path / "x.pt")
    result = bench("scan", tmp_path / "x.pt", *arch(zoo)[:2], "--verify", "--json")
    assert "took the weights under netC; also there: netC_ema" in result.err
    assert "guessed: 4 classes, read off the weights (--num-classes); an input of 3,32,32 (--input-size)" in result.err
    assert "verified: fused kernels in place of all pairs (1) change the outputs by" in result.err
    assert result.json["loaded"] == {
        "taken": "netC", "others": ["netC_ema"], "beside": ["epoch"], "adapted": [],
        "guessed": ["4 classes, read off the weights (--num-classes)", "an input of 3,32,32 (--input-size)"],
        "input_shape": [3, 32, 32],
    }  # fmt: skip
    other = bench("scan", tmp_path / "x.pt", *arch(zoo), "--key", "netC_ema", "--json")
    assert other.json["loaded"]["taken"] == "netC_ema"


def test_scan_options_reach_the_architecture_and_strict_adapts_nothing(zoo: Path, tmp_path: Path) -> None:
    torch.save(build_model("builtin:resnet18", num_classes=4, width=8).state_dict(), tmp_path / "x.pt")
    command = ("scan", tmp_path / "x.pt", "--arch", "builtin:resnet18", "--json")
    assert bench(*command, "--arch-option", "width=8", "--strict").json["layers"][0]["channels"] == 8
    assert "'conv1.weight'" in refused(*command)
    assert "--arch-option: expected NAME=VALUE" in refused(*command, "--arch-option", "width")
    assert "unknown option of model 'resnet18' 'wide'" in refused(*command, "--arch-option", "wide=3")
    torch.save(nn.DataParallel(small(zoo)).state_dict(), tmp_path / "p.pt")
    assert bench("scan", tmp_path / "p.pt", *arch(zoo), "--json").code == 0
    assert "weights do not fit" in refused("scan", tmp_path / "p.pt", *arch(zoo), "--strict")
