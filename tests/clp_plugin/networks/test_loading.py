"""Checkpoints as people have them: the right weights are taken, and their own scripts read what comes back."""

from __future__ import annotations

import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.masking.apply import masked
from clp_plugin.networks.loading import LoadedNetwork, load_network
from clp_plugin.types import Mask

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code", "ignore:.torch.jit:FutureWarning")

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4, depth=1, channels=3, head=True):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.more = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(depth)))
        self.fc = nn.Linear(6, num_classes) if head else nn.Identity()

    def forward(self, x):
        return self.fc(self.more(self.bn(self.conv(x)).relu()).mean((2, 3)))

class Stateful(Net):
    count = 3

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 2)

class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.loss = Net(), nn.CrossEntropyLoss(torch.ones(4))

def wide(num_classes):
    return nn.DataParallel(Net(num_classes))

def rearranged(num_classes):
    stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 6, 3), nn.BatchNorm2d(6))
    return nn.Sequential(stem, nn.Flatten(), nn.Linear(6 * 12 * 12, num_classes))

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(6, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.LazyLinear(num_classes))
"""
MASK = Mask({"bn": np.array([False, True, False, False, True, False])})
KEYS = ("bn.weight", "bn.bias")


class User:
    """What the user's own script defines."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "nets.py"
        self.file.write_text(textwrap.dedent(SOURCE))
        names: dict[str, Any] = {"__name__": "training_script"}
        exec(SOURCE, names)
        self.names = names

    def make(self, name: str = "Net", *, seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        model = self.names[name](**options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, 0.5, 1.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model.eval()

    def arch(self, name: str = "Net") -> str:
        return f"{self.file}:{name}"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(tmp_path_factory.mktemp("user"))


def optimizer(model: nn.Module) -> dict[str, Any]:
    sgd = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    sgd.step()
    return sgd.state_dict()


def mixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict(
        (key, value.half() if key.startswith(("conv", "more")) else value) for key, value in state.items()
    )


def averaged(model: nn.Module) -> dict[str, Any]:
    return dict(torch.optim.swa_utils.AveragedModel(model).state_dict())


# name -> (suffix, the file's content, where the weights are in it, how the user's script loads them, prefix of their keys)
Layout = tuple[str, Callable[[User, Any], Any], Callable[[Any], Any], Callable[[User], nn.Module], str]
LAYOUTS: dict[str, Layout] = {
    "plain": (".pt", lambda u, m: m.state_dict(), lambda c: c, lambda u: u.make(seed=9), ""),
    "net, acc, epoch": (
        ".pth", lambda u, m: {"net": m.state_dict(), "acc": 0.5, "epoch": 3}, lambda c: c["net"],
        lambda u: u.make(seed=9), "",
    ),
    "ImageNet example": (
        ".pth.tar",
        lambda u, m: {"epoch": 1, "arch": "net", "state_dict": nn.DataParallel(m).state_dict(), "best": torch.tensor(0.5),
                      "optimizer": optimizer(m)},
        lambda c: c["state_dict"], lambda u: nn.DataParallel(u.make(seed=9)), "module.",
    ),
    "Lightning": (
        ".ckpt",
        lambda u, m: {"state_dict": {**{f"model.{k}": v for k, v in m.state_dict().items()}, "loss.weight": torch.ones(4)},
                      "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "lr_schedulers": []},
        lambda c: c["state_dict"], lambda u: u.make("Lit", seed=9), "model.",
    ),
    "average beside it": (
        ".bin", lambda u, m: {"model": m.state_dict(), "model_ema": u.make(seed=5).state_dict()}, lambda c: c["model"],
        lambda u: u.make(seed=9), "",
    ),
    "generator first": (
        ".pt", lambda u, m: {"netG": u.make("Generator").state_dict(), "deep": {"netC": m.state_dict()}},
        lambda c: c["deep"]["netC"], lambda u: u.make(seed=9), "",
    ),
    "state that is no tensor": (
        ".pt", lambda u, m: {**m.state_dict(), "_extra_state": {"count": 5}}, lambda c: c,
        lambda u: u.make("Stateful", seed=9), "",
    ),
    "list": (".pt", lambda u, m: [7, m.state_dict()], lambda c: c[1], lambda u: u.make(seed=9), ""),
    "tuple": (".pt", lambda u, m: (m.state_dict(), 7), lambda c: c[0], lambda u: u.make(seed=9), ""),
    "averaged model": (".pt", lambda u, m: averaged(m), lambda c: c,
                       lambda u: torch.optim.swa_utils.AveragedModel(u.make(seed=9)), "module."),
    "entries among the weights": (
        ".pt", lambda u, m: {**m.state_dict(), "epoch": 3}, lambda c: {k: v for k, v in c.items() if k != "epoch"},
        lambda u: u.make(seed=9), "",
    ),
    "half": (".pt", lambda u, m: m.half().state_dict(), lambda c: c, lambda u: u.make(seed=9).half(), ""),
    "mixed precision": (".pt", lambda u, m: mixed(m.state_dict()), lambda c: c, lambda u: u.make(seed=9), ""),
}  # fmt: skip


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Places in which two contents differ, in type, order or value."""
    assert type(before) is type(after), where
    if isinstance(before, dict):
        assert list(before) == list(after), where
        assert getattr(before, "_metadata", None) == getattr(after, "_metadata", None), where
        return [place for key in before for place in differences(before[key], after[key], f"{where}/{key}")]
    if isinstance(before, (list, tuple)):
        assert len(before) == len(after), where
        return [
            place
            for i, pair in enumerate(zip(before, after, strict=True))
            for place in differences(*pair, f"{where}/{i}")
        ]
    if isinstance(before, Tensor):
        assert (before.dtype, before.shape) == (after.dtype, after.shape), where
        return [] if torch.equal(before, after) else [where]
    assert before == after, where
    return []


def repaired(loaded: LoadedNetwork, out: Path, mask: Mask = MASK) -> nn.Module:
    model = masked(loaded.model, mask)
    loaded.save(model, out)
    return model


@pytest.mark.parametrize("legacy", [False, True], ids=["", "legacy"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_repaired_file_is_read_by_the_users_own_script(user: User, tmp_path: Path, name: str, legacy: bool) -> None:
    suffix, content, pick, mine, prefix = LAYOUTS[name]
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    torch.save(content(user, user.make()), source, _use_new_zipfile_serialization=not legacy)
    loaded = load_network(source, arch=user.arch("Stateful" if name == "state that is no tensor" else "Net"))
    model = repaired(loaded, out)
    before, after = torch.load(source), torch.load(out)
    assert (out.read_bytes()[:2] == b"PK") is not legacy
    changed = differences(before, after)
    assert [place.rpartition("/")[2] for place in changed] == [prefix + key for key in KEYS]
    script = mine(user)
    script.load_state_dict(pick(after))
    image = torch.rand(2, 3, 8, 8, dtype=next(script.parameters()).dtype)
    inner = script.model if name == "Lightning" else script
    assert torch.equal(inner.eval()(image), model.eval()(image).to(image.dtype))


def test_what_was_taken_and_what_else_there_is_is_said(user: User, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    states = {name: user.make(seed=seed).state_dict() for seed, name in enumerate(("model_ema", "model"))}
    torch.save({**states, "epoch": 3}, path)
    loaded = load_network(path, arch=user.arch())
    assert (loaded.taken, loaded.others, loaded.beside) == ("model", ("model_ema",), ("epoch",))
    assert torch.equal(loaded.model.state_dict()["fc.weight"], states["model"]["fc.weight"])
    assert "took the weights under model; also there: model_ema (--key takes another)" in loaded.notes()[0]
    other = load_network(path, arch=user.arch(), key="model_ema")
    assert (other.taken, other.others) == ("model_ema", ("model",))
    assert torch.equal(other.model.state_dict()["fc.weight"], states["model_ema"]["fc.weight"])
    repaired(other, tmp_path / "out.pt")
    assert differences(torch.load(path), torch.load(tmp_path / "out.pt")) == [f"/model_ema/{key}" for key in KEYS]


@pytest.mark.parametrize("key", ["deep", "deep.nets", "deep.nets.1", "deep.nets.1.state_dict"])
def test_a_key_is_a_dotted_path(user: User, tmp_path: Path, key: str) -> None:
    wanted = user.make(seed=3).state_dict()
    torch.save({"model": user.make().state_dict(), "deep": {"nets": [4, {"state_dict": wanted}]}}, tmp_path / "x.pt")
    loaded = load_network(tmp_path / "x.pt", arch=user.arch(), key=key)
    assert loaded.taken == "deep.nets.1.state_dict"
    assert torch.equal(loaded.model.state_dict()["fc.weight"], wanted["fc.weight"])


def test_a_key_runs_on_into_a_flat_state_dict(user: User, tmp_path: Path) -> None:
    """Of student and teacher in one state dict, both fit."""
    students = {f"student.{key}": value for key, value in user.make(seed=1).state_dict().items()}
    teachers = {f"teacher.{key}": value for key, value in user.make(seed=2).state_dict().items()}
    torch.save({"state_dict": {**students, **teachers}}, tmp_path / "x.pt")
    loaded = load_network(tmp_path / "x.pt", arch=user.arch(), key="state_dict.teacher")
    assert torch.equal(loaded.model.state_dict()["fc.weight"], teachers["teacher.fc.weight"])
    repaired(loaded, tmp_path / "out.pt")
    changed = differences(torch.load(tmp_path / "x.pt"), torch.load(tmp_path / "out.pt"))
    assert changed == [f"/state_dict/teacher.{key}" for key in KEYS]


def test_a_key_that_leads_nowhere_lists_what_there_is(user: User, tmp_path: Path) -> None:
    torch.save({"netC": user.make().state_dict(), "netG": user.make("Generator").state_dict()}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"no weights under --key netD; it has: netC \(\d+ tensors\), netG \(2 tensors\)"
    ):
        load_network(tmp_path / "x.pt", arch=user.arch(), key="netD")
    with pytest.raises(CheckpointError, match=r"'conv\.weight'.*--arch-option"):
        load_network(tmp_path / "x.pt", arch=user.arch(), key="netG")


def test_weights_that_do_not_fit_name_the_options_that_may_help(user: User, tmp_path: Path) -> None:
    torch.save({"a": user.make(depth=2).state_dict(), "b": user.make(depth=3).state_dict()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"'more\.1\.weight'.*lacks.*--arch-option.*--key: b \(\d+ tensors\)"):
        load_network(tmp_path / "x.pt", arch=user.arch())
    assert len(load_network(tmp_path / "x.pt", arch=user.arch(), options={"depth": 2}).model.more) == 2  # type: ignore[arg-type]
    assert load_network(tmp_path / "x.pt", arch=user.arch(), options={"depth": 3}).taken == "b"


def test_options_reach_every_kind_of_architecture(tmp_path: Path) -> None:
    from clp_plugin.networks.architectures import build_model

    pytest.importorskip("timm")
    for arch, options in (
        ("builtin:resnet18", {"width": 8}),
        ("torchvision:googlenet", {"aux_logits": False}),
        ("timm:resnet18", {"in_chans": 1}),
    ):
        torch.save(build_model(arch, num_classes=3, **options).state_dict(), tmp_path / "x.pt")
        loaded = load_network(tmp_path / "x.pt", arch=arch, options=options)
        assert loaded.adapted == ()
        assert loaded.input_shape[0] == options.get("in_chans", 3)


def test_the_number_of_classes_is_no_option_of_the_architecture(user: User, tmp_path: Path) -> None:
    torch.save(user.make().state_dict(), tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="--num-classes"):
        load_network(tmp_path / "x.pt", arch=user.arch(), options={"num_classes": 4})
    with pytest.raises(ConfigError, match=r"cannot build .*spec"):
        load_network(tmp_path / "x.pt", arch=user.arch(), options={"spec": 4})


def test_the_number_of_classes_may_be_in_a_layer_of_any_name(user: User, tmp_path: Path) -> None:
    """The last linear weight in a safetensors file is the last by name, which need not be the head."""
    state = user.make(num_classes=7).state_dict()
    save_file({**state, "zz.weight": torch.zeros(99, 5)}, tmp_path / "x.safetensors")
    loaded = load_network(tmp_path / "x.safetensors", arch=user.arch())
    assert loaded.model.fc.out_features == 7  # type: ignore[union-attr]
    assert any(phrase.startswith("7 classes") for phrase in loaded.guessed)


def test_the_input_is_one_that_the_network_takes(user: User, tmp_path: Path) -> None:
    torch.save(user.make(channels=1).state_dict(), tmp_path / "x.pt")
    assert load_network(tmp_path / "x.pt", arch=user.arch(), options={"channels": 1}).input_shape == (1, 32, 32)


def test_an_image_rearranged_before_the_first_convolution_has_its_own_channels(user: User, tmp_path: Path) -> None:
    torch.save(user.make("rearranged", num_classes=4).state_dict(), tmp_path / "x.pt")
    assert load_network(tmp_path / "x.pt", arch=user.arch("rearranged")).input_shape == (3, 28, 28)


def test_factories_of_wrapped_and_lazy_networks_are_ordinary_networks_afterwards(user: User, tmp_path: Path) -> None:
    torch.save(user.make().state_dict(), tmp_path / "x.pt")
    wide = load_network(tmp_path / "x.pt", arch=user.arch("wide")).model
    assert type(wide).__name__ == "Net"
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    torch.save(plain.state_dict(), tmp_path / "x.pt")
    lazy = load_network(tmp_path / "x.pt", arch=user.arch("lazy")).model
    assert [type(module).__name__ for module in lazy] == [type(module).__name__ for module in plain]  # type: ignore[union-attr]
    assert lazy[0].in_channels == 3  # type: ignore[index, union-attr]


@pytest.mark.parametrize("legacy", [False, True], ids=["", "legacy"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_a_whole_module_comes_back_as_the_class_that_it_was(
    user: User, tmp_path: Path, nested: bool, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class lies in a script that is not imported here; afterwards that script reads it as its own."""
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    script: Any = type(sys)("training_script")
    vars(script).update(user.names)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "training_script", script)
        model = user.make().train()
        torch.save({"model": model, "epoch": 1} if nested else model, source, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"training_script\.Net.*--trust"):
        load_network(source, arch=user.arch())
    with pytest.raises(CheckpointError, match=r"training_script\.Net cannot be imported.*--arch"):
        load_network(source, trust=True)
    loaded = load_network(source, arch=user.arch(), trust=True)
    expected = repaired(loaded, out)
    assert "training_script" not in sys.modules
    monkeypatch.setitem(sys.modules, "training_script", script)
    back = torch.load(out, weights_only=False)
    back = back["model"] if nested else back
    assert type(back) is user.names["Net"]
    assert back.training
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(back.eval()(image), expected(image))


def test_a_whole_module_of_known_classes_needs_no_architecture(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 26 * 26, 4)).eval()
    torch.save(nn.DataParallel(inner), tmp_path / "in.pt")
    with pytest.raises(ConfigError, match=r"whole module.*leave --arch-option out"):
        load_network(tmp_path / "in.pt", options={"depth": 2}, trust=True)
    loaded = load_network(tmp_path / "in.pt", trust=True)
    assert loaded.input_shape == (1, 28, 28)
    assert any("1,28,28 (--input-size)" in phrase for phrase in loaded.guessed)
    model = repaired(loaded, tmp_path / "out.pt", Mask({"1": MASK.pruned["bn"]}))
    back = torch.load(tmp_path / "out.pt", weights_only=False)
    assert type(back) is nn.DataParallel
    assert torch.equal(back.module(torch.ones(1, 1, 28, 28)), model(torch.ones(1, 1, 28, 28)))


def test_torchscript_gives_its_weights_to_an_architecture_and_comes_back_as_torchscript(
    user: User, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.jit.trace(user.make(), torch.rand(1, 3, 8, 8)).save(str(source))
    with pytest.raises(CheckpointError, match=r"TorchScript.*--trust"):
        load_network(source, arch=user.arch())
    with pytest.raises(ConfigError, match=r"is TorchScript, whose layers cannot be followed.*--arch"):
        load_network(source, trust=True)
    model = repaired(load_network(source, arch=user.arch(), trust=True), out)
    image = torch.rand(1, 3, 8, 8)
    assert torch.allclose(torch.jit.load(str(out))(image), model(image))


def test_weights_alone_go_to_safetensors_under_their_stored_keys(user: User, tmp_path: Path) -> None:
    torch.save({"net": nn.DataParallel(user.make()).state_dict(), "acc": 1}, tmp_path / "in.pth")
    model = repaired(load_network(tmp_path / "in.pth", arch=user.arch()), tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(found[f"module.{key}"], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_safetensors_is_known_by_its_content_and_keeps_its_texts(user: User, tmp_path: Path, suffix: str) -> None:
    from safetensors import safe_open

    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    save_file(user.make().state_dict(), source, metadata={"format": "pt", "author": "somebody"})
    repaired(load_network(source, arch=user.arch()), out)
    assert differences(load_file(source), load_file(out)) == [f"/{key}" for key in load_file(source) if key in KEYS]
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "author": "somebody", "written_by": "clp-plugin"}


def write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    import json

    folder.mkdir()
    shards = {key: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, key in enumerate(state)}
    for shard in set(shards.values()):
        save_file({key: value for key, value in state.items() if shards[key] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("named", ["folder", "index"])
def test_weights_in_several_files_are_one_checkpoint(user: User, tmp_path: Path, named: str) -> None:
    write_shards(tmp_path / "in", user.make().state_dict())
    path = tmp_path / "in" if named == "folder" else tmp_path / "in" / "model.safetensors.index.json"
    loaded = load_network(path, arch=user.arch())
    model = repaired(loaded, tmp_path / "out")
    before, after = (sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("in", "out"))
    assert before == after
    held = {key: value for file in (tmp_path / "out").glob("*.safetensors") for key, value in load_file(file).items()}
    assert all(torch.equal(held[key], value) for key, value in model.state_dict().items())
    repaired(loaded, tmp_path / "one.safetensors")
    assert set(load_file(tmp_path / "one.safetensors")) == set(held)
    with pytest.raises(ConfigError, match="something of that name already"):
        repaired(loaded, tmp_path / "out")


def test_an_index_leads_nowhere_else(user: User, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", user.make().state_dict())
    (tmp_path / "in" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"names 'model-00002-of-00002\.safetensors', which does not lie beside it"
    ):
        load_network(tmp_path / "in", arch=user.arch())
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"conv.weight": "../x.safetensors"}}')
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(CheckpointError, match="does not lie beside it"):
        load_network(index, arch=user.arch())


def test_places_that_cannot_hold_the_checkpoint_are_refused(user: User, tmp_path: Path) -> None:
    source = tmp_path / "in.weird"
    torch.save(user.make().state_dict(), source)
    loaded = load_network(source, arch=user.arch())
    repaired(loaded, tmp_path / "out.weird")
    for name in ("out.onnx", "out", "in.weird"):
        with pytest.raises(ConfigError, match="--repair"):
            loaded.require_place(tmp_path / name)


def test_tensors_that_share_memory_still_do(user: User, tmp_path: Path) -> None:
    """A file that stores one tensor under two names stays as small as it was."""
    state = user.make().state_dict()
    torch.save({**state, "alias.bn.weight": state["bn.weight"], "loss.bn": state["fc.weight"]}, tmp_path / "in.pt")
    repaired(load_network(tmp_path / "in.pt", arch=user.arch()), tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt")
    assert found["loss.bn"].data_ptr() == found["fc.weight"].data_ptr()
