"""What the toolbox's defenses leave is read back as the network that they judged, with the numbers that they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_checkout import write
from torch import Tensor, nn
from torch.nn.utils import prune

from clp_plugin.adapters.backdoorbench.models import build
from clp_plugin.adapters.backdoorbench.plugged import plug_in
from clp_plugin.adapters.backdoorbench.results import RESULT, read_model, read_reported
from clp_plugin.adapters.backdoorbench.toolbox import BackdoorBench
from clp_plugin.errors import CheckpointError, ClpError, RecordError

MODEL, CLASSES = "squeezenet1_0", 3
SEED = 1  # of random weights: with some seeds the last ReLU is silent, and every network puts out zeros
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def attacked() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build(MODEL, CLASSES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def store(folder: Path, state: Any, **more: Any) -> None:
    torch.save({"model_name": MODEL, "num_classes": CLASSES, "model": state, **more}, folder / RESULT)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    out: Tensor = model(IMAGES)
    return out


def changed(model: nn.Module) -> dict[str, Tensor]:
    return {key: value + 0.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_stored_weights_are_the_networks(attacked: nn.Module, folder: Path, prefix: str) -> None:
    state = changed(attacked)
    store(folder, {prefix + key: value for key, value in state.items()})
    found = read_model(folder, options={})
    assert not found.training
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())


def test_a_pruned_weight_is_what_torchs_pruning_computes(folder: Path) -> None:
    """FP leaves the network as torch.nn.utils.prune has it: two tensors in place of one."""
    network = build(MODEL, CLASSES)
    layer = network.get_submodule("classifier.1")
    assert isinstance(layer, nn.Conv2d)
    mask = torch.ones_like(layer.weight)
    mask[:, ::2] = 0
    prune.custom_from_mask(layer, "weight", mask)
    assert "classifier.1.weight" not in network.state_dict()
    store(folder, network.state_dict())
    found = read_model(folder, options={})
    assert torch.equal(logits(found), logits(network.eval()))
    assert not found.get_submodule("classifier.1").weight[:, ::2].any()


PLUGS = {
    "onlyconv": lambda k: [nn.Conv2d(k, k, 1, bias=False)],
    "convbn": lambda k: [nn.Conv2d(k, k, 1, bias=False), nn.BatchNorm2d(k)],
    "lightconv": lambda k: [nn.Conv2d(k, k, 1, bias=False), nn.BatchNorm2d(k)],
    "twoconv": lambda k: [nn.Conv2d(k, k, 1, bias=False), nn.BatchNorm2d(k)] * 2,
}


def plug_of(kind: str, channels: int) -> nn.Sequential:
    """With weights and statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(1)
    plug = nn.Sequential(*PLUGS[kind](channels))
    with torch.no_grad():
        for tensor in (tensor for tensor in plug.state_dict().values() if tensor.is_floating_point()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) / 8 + 0.05)
    return plug.eval()


def hooked(network: nn.Module, target: str, plug: nn.Module, *, residual: bool) -> Tensor:
    """As the toolbox runs it: the layer acts in a hook on the module's input."""

    def before(module: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return plug(given[0]) + given[0] if residual else plug(given[0])

    handle = network.get_submodule(target).register_forward_pre_hook(before)
    try:
        return logits(network)
    finally:
        handle.remove()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", PLUGS)
def test_npds_layer_acts_in_front_of_its_module(attacked: nn.Module, folder: Path, kind: str, residual: bool) -> None:
    target = "features.4"
    plug = plug_of(kind, 128)
    store(folder, attacked.state_dict())
    torch.save({"target_layer": target, "plug_name": kind, "plug_model": plug.state_dict()}, folder / "plug_layer.pt")
    found = read_model(folder, options={"use_residual": "yes" if residual else "no"})
    assert not any(module.training for module in found.modules())
    wanted = hooked(attacked, target, plug, residual=residual)
    assert torch.allclose(logits(found), wanted, atol=1e-6)
    assert not torch.allclose(logits(attacked), wanted, atol=1e-3), "a layer that does nothing would pass unseen"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], r"plug_layer\.pt: expected a dictionary, found list"),
        ({"target_layer": "features.4", "plug_name": "linear", "plug_model": [torch.ones(1)]}, "found 'linear'"),
        ({"target_layer": "features.4", "plug_name": "onlyconv", "plug_model": [torch.ones(1)]}, "plug-in layer"),
        ({"target_layer": "features.4", "plug_name": "onlyconv", "plug_model": {}}, "expected the weights of a plug-in"),
        ({"target_layer": "layer4", "plug_name": "onlyconv", "plug_model": {"0.weight": torch.ones(2, 2, 1, 1)}}, "layer4"),
        ({"target_layer": "features.4", "plug_name": "convbn", "plug_model": {"0.weight": torch.ones(2, 2, 1, 1)}}, "fit"),
    ],
)  # fmt: skip
def test_a_layer_of_another_kind_is_refused(attacked: nn.Module, folder: Path, content: Any, said: str) -> None:
    store(folder, attacked.state_dict())
    torch.save(content, folder / "plug_layer.pt")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_model(folder, options={})
    assert len(str(caught.value).splitlines()) == 1


def test_a_plug_goes_into_a_network_that_is_a_module_of_its_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    plug = plug_of("onlyconv", 4)
    wanted = network[1](plug(network[0](IMAGES)))
    plug_in(
        network,
        {"target_layer": "1", "plug_name": "onlyconv", "plug_model": plug.state_dict()},
        residual=False,
        where="",
    )
    assert torch.equal(network(IMAGES), wanted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "is empty: the defense crashed with a loss that was not finite"),
        ({"state_dict": {}}, "expected the keys model_name, num_classes, model, found state_dict"),
        (torch.ones(2), "expected the keys model_name, num_classes, model, found Tensor"),
        ([1, 2], "expected the keys model_name, num_classes, model, found list"),
        ({"model_name": "resnet9000", "num_classes": 3, "model": {}}, "resnet9000"),
        ({"model_name": MODEL, "num_classes": 3, "model": {}}, "weights do not fit"),
        ({"model_name": MODEL, "num_classes": 3, "model": None}, "expected a state dict under 'model', found NoneType"),
        ({"model_name": MODEL, "num_classes": None, "model": {}}, "num_classes"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(folder: Path, content: Any, said: str) -> None:
    torch.save(content, folder / RESULT)
    with pytest.raises(ClpError) as caught:
        read_model(folder, options={})
    assert said in str(caught.value)
    assert str(folder) in str(caught.value) or "resnet9000" in said
    assert len(str(caught.value).splitlines()) == 1


def test_no_result_says_what_may_have_happened(folder: Path) -> None:
    with pytest.raises(RecordError, match=r"no defense_result\.pt: the defense crashed, still runs"):
        read_model(folder, options={})


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("file", [RESULT, "plug_layer.pt"])
def test_a_result_that_would_run_code_is_not_run(attacked: nn.Module, folder: Path, tmp_path: Path, file: str) -> None:
    store(folder, attacked.state_dict())
    torch.save({"model": Evil(tmp_path / "ran")}, folder / file)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        read_model(folder, options={})
    assert not (tmp_path / "ran").exists()


COLUMNS = "epoch,test_acc,test_asr,test_ra"


@pytest.mark.parametrize(
    ("method", "file", "table", "wanted"),
    [
        ("clp", "clp_df_summary.csv", ",u,test_acc,test_asr,test_ra\n0,3.0,0.5,0.25,0.125\n", (0.5, 0.25, 0.125)),
        ("ft", "ft_df_summary.csv", f",{COLUMNS}\nfirst,0,1,1,1\nlast,9,0.5,0.25,0.125\nmax,1,1,1,1\n", (0.5, 0.25, 0.125)),
        ("npd", "npd_df_summary.csv", f",{COLUMNS}\nlast,9,50,25,12.5\n", (0.5, 0.25, 0.125)),
        ("ft-sam", "log/d-sam_df_summary.csv", f",{COLUMNS}\nlast,9,0.5,0.25,0.125\n", (0.5, 0.25, 0.125)),
        ("rnp", "rnp_df_summary.csv", f",{COLUMNS}\n0,0,1,1,1\n1,9,0.5,0.25,0.125\n", (0.5, 0.25, 0.125)),
    ],
)  # fmt: skip
def test_the_scripts_own_final_numbers_are_fractions(
    folder: Path, method: str, file: str, table: str, wanted: tuple[float, ...]
) -> None:
    write(folder / file, table)
    assert read_reported(folder, method) == dict(zip(("acc", "asr", "ra"), wanted, strict=True))


def test_words_among_the_numbers_are_left_out(folder: Path) -> None:
    write(folder / "ft_df_summary.csv", f",{COLUMNS}\nlast,9,0.5,nan_value,nan\n")
    assert read_reported(folder, "ft") == {"acc": 0.5}


@pytest.mark.parametrize("table", [None, "", ",\n", f",{COLUMNS}\n", "a,b\n1,2,3\n1,2,3,4,5\n"])
def test_a_table_that_says_nothing_reports_nothing(folder: Path, table: str | None) -> None:
    if table is not None:
        write(folder / "ft_df_summary.csv", table)
    assert read_reported(folder, "ft") == {}
    assert read_reported(folder, "somebody's own") == {}


def test_an_earlier_result_is_read_without_knowing_how_it_was_made(attacked: nn.Module, tmp_path: Path) -> None:
    record = tmp_path / "record" / "eins"
    for method in ("anp", "mine"):
        (record / "defense" / method).mkdir(parents=True)
        store(record / "defense" / method, changed(attacked))
    write(record / "defense" / "anp" / "anp_df_summary.csv", f",{COLUMNS}\n0,9,0.5,0.25,0.125\n")
    found = BackdoorBench().read_defense(record, "anp")
    assert torch.equal(found.model.state_dict()["classifier.1.bias"], changed(attacked)["classifier.1.bias"])
    assert (found.folder, found.reported) == (record / "defense" / "anp", {"acc": 0.5, "asr": 0.25, "ra": 0.125})
    assert (found.seconds, dict(found.options), found.log, found.commit) == (0, {}, None, "")
    assert "triggered test images" in found.oracle
    assert found.budget == "benign:a share of the training images"
    mine = BackdoorBench().read_defense(record, "mine")
    assert (mine.budget, mine.reported, mine.oracle) == ("unknown", {}, "")
    with pytest.raises(RecordError, match=r"results there are: anp, mine$"):
        BackdoorBench().read_defense(record, "ft")
