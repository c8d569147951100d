"""Checkpoints as people have them: their own scripts read what comes back."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from user_scripts import KEYS, MASK, User, differences, repaired

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.networks.loading import load_network
from clp_plugin.types import Mask

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code", "ignore:.torch.jit:FutureWarning")


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
