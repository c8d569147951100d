"""Checkpoints as people have them: the right weights are taken, for the right network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from user_scripts import KEYS, User, differences, repaired

from clp_plugin.errors import CheckpointError, ConfigError
from clp_plugin.networks.loading import load_network

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code", "ignore:.torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(tmp_path_factory.mktemp("user"))


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
