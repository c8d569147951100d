"""Fine-Pruning against a slow measurement of activity, image by image in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import TinyNet, fake_record, normalized, random_images, shaken
from tiny_nets import CASES
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from clp_plugin.adapters.builtin.models.build import build
from clp_plugin.bench.budget import draw_budget
from clp_plugin.bench.run import plan_defense, run_defense
from clp_plugin.defenses.base import Budget
from clp_plugin.defenses.fp import FP, ORACLE_STEP, activity, last_layer
from clp_plugin.defenses.ft import FT
from clp_plugin.defenses.shared import choice as _choice
from clp_plugin.defenses.shared.training import hold_out, loaded
from clp_plugin.errors import ConfigError
from clp_plugin.fusion.layers import fuse
from clp_plugin.images import ArrayImages
from clp_plugin.types import Metrics


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return shaken(build(name, num_classes=5, **options))


def budget_of(images: ArrayImages | None, size: int = 12, judge: Any = None) -> Budget:
    return Budget((3, size, size), 5, benign=images, judge=judge)


def tiny() -> Any:
    return shaken(TinyNet())


def slow_activity(images: ArrayImages, positions: list[int]) -> list[float]:
    """Of TinyNet's last convolution, channel by channel, by the definition."""
    net: Any = tiny().double()
    sums = [0.0] * 8
    count = 0
    for position in positions:
        first = torch.relu(net.bn1(net.conv1(normalized(images, position))))
        maps = net.conv3(torch.relu(net.bn_sum(first + net.conv2(first))))[0]
        for row in range(maps.shape[1]):
            for column in range(maps.shape[2]):
                count += 1
                for channel in range(8):
                    sums[channel] += max(0.0, maps[channel, row, column].item())
    return [total / count for total in sums]


def working_positions(images: ArrayImages, seed: int, share: float = 0.2) -> list[int]:
    """Which images are not held out, found again by their pixels."""
    data = loaded(images, tiny())
    working, _ = hold_out(data, share, seed)
    return [int((data.images == image).flatten(1).all(1).nonzero()) for image in working.images]


# --- which layer, how active -----------------------------------------------------------------------------------------


class FirstGate(nn.Module):
    """A gate that is computed with functions after the last convolution, and multiplied in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.excite = nn.Conv2d(2, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(maps.mean((2, 3), keepdim=True)))))
        maps *= gate
        return self.fc((maps * torch.sigmoid(maps)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (tiny, 12, "conv3"),
        (lambda: small("resnet18", width=2), 16, "layer4.1.bn2"),
        (lambda: small("resnet18", width=2, blocks=(1, 1)), 16, "layer2.0.bn2"),  # its shortcut is executed later
        (lambda: small("preactresnet18", width=2), 16, "layer4.1.conv2"),
        (lambda: small("senet18", width=2), 16, "layer4.1.conv2"),
        (lambda: small("vgg11_bn", width=2), 16, "features.26"),
        (lambda: FirstGate().eval(), 12, "norm"),
    ],
)
def test_the_layer_is_the_deepest_that_is_no_head_and_no_gate(make: Any, size: int, expected: str) -> None:
    assert last_layer(fuse(make(), (3, size, size))).name == expected


def test_branches_that_open_only_in_training_are_not_pruned() -> None:
    view = fuse(CASES["auxiliary_head"].build().eval(), (3, 8, 8))
    assert [layer.name for layer in view.layers if layer.kind == "fused"] == ["bn1", "aux_bn"]
    assert last_layer(view).name == "bn1"


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), nn.Sequential(nn.Conv2d(3, 5, 1))])
def test_a_network_without_a_layer_to_prune_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="this network has none besides its classifier; use ft"):
        FP().repair(model.eval(), budget_of(random_images(8)))


def test_activity_is_the_mean_over_images_and_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clp_plugin.defenses.fp._BATCH", 4)
    model, images = tiny(), random_images(10)
    view = fuse(model, (3, 12, 12))
    found = activity(view, last_layer(view), loaded(images, model))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, slow_activity(images, list(range(10))), rtol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_activity_is_measured_behind_the_batchnorm() -> None:
    model: Any = FirstGate().eval()
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([-100.0, 5.0, 7.0, -100.0]))
        model.norm.weight.zero_()
    view = fuse(model, (3, 12, 12))
    assert activity(view, last_layer(view), loaded(random_images(3), model)).tolist() == [0, 5, 7, 0]


# --- what is pruned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.0, 0), (0.1, 0), (0.125, 1), (0.3, 2), (0.5, 4), (0.77, 6), (0.999, 7), (1 - 1e-12, 7)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_least_active_channels_go_first(ratio: float, count: int, seed: int) -> None:
    images = random_images(20)
    slow = slow_activity(images, working_positions(images, seed))
    repaired = FP(ratio=ratio, epochs=0).repair(tiny(), budget_of(images), seed=seed)
    assert repaired.mask is not None
    expected = sorted(sorted(range(8), key=lambda channel: slow[channel])[:count])
    assert repaired.mask.indices() == ({"conv3": expected} if count else {})
    assert (repaired.log["layer"], repaired.log["ratio"], repaired.log["rule"]) == ("conv3", ratio, "fixed")


def test_held_out_images_take_no_part_in_the_activity() -> None:
    noisy, differ = random_images(6), 0
    pixels = noisy.pixels[:, :, :1, :1].repeat(12, axis=2).repeat(12, axis=3)  # of one colour each: not alike at all
    images = ArrayImages(pixels, noisy.labels, noisy.mean, noisy.std)
    for seed in range(4):
        repaired = FP(ratio=0.25, held_out=0.5, epochs=0).repair(tiny(), budget_of(images), seed=seed)
        working, of_all = (
            sorted(np.argsort(slow_activity(images, positions), kind="stable")[:2].tolist())
            for positions in (working_positions(images, seed, 0.5), list(range(6)))
        )
        assert repaired.mask is not None
        assert repaired.mask.indices() == {"conv3": working}
        differ += working != of_all
    assert differ


def test_the_ratio_is_the_last_one_before_accuracy_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy is looked up by how many channels are silent: 5 may go, 6 may not, 7 would be lucky."""
    by_count = [0.9, 0.9, 0.88, 0.9, 0.87, 0.86, 0.5, 0.9]
    asked = []

    def looked_up(model: Any, data: Any) -> float:
        asked.append(int((model.conv3.weight.flatten(1) == 0).all(1).sum()))
        return by_count[asked[-1]]

    monkeypatch.setattr(_choice, "accuracy", looked_up)
    repaired = FP(epochs=0).repair(tiny(), budget_of(random_images(200)))
    assert asked == [0, 1, 2, 3, 4, 5, 6]
    assert len(repaired.mask or ()) == 5
    assert repaired.log["ratio"] == 0.74  # 0.75 of 8 channels are 6
    assert [row["value"] for row in repaired.log["tried"]] == [n / 100 for n in range(76)]


def test_tolerance_of_everything_still_leaves_a_channel() -> None:
    repaired = FP(tolerance=1.0, step=0.3, epochs=0).repair(tiny(), budget_of(random_images(20)))
    assert repaired.log["ratio"] == 0.9
    assert len(repaired.mask or ()) == 7
    one_channel = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 5)).eval()
    repaired = FP(tolerance=1.0, epochs=0).repair(one_channel, budget_of(random_images(20)))
    assert len(repaired.mask or ()) == 0


def test_oracle_stops_at_the_first_that_loses_a_tenth_of_test_accuracy() -> None:
    judged = []

    def judge(model: Any) -> Metrics:
        silent = int((model.conv3.weight.flatten(1) == 0).all(1).sum())
        judged.append(silent)
        return Metrics(acc=0.4 if silent in (4, 5) else 0.9, asr=0.5, ra=0.0, base_rate=0.0, n_clean=9, n_triggered=9)

    repaired = FP(epochs=0).repair(tiny(), budget_of(random_images(20), judge=judge))
    assert judged == [0, 1, 2, 3, 4]
    assert len(repaired.mask or ()) == 3
    assert repaired.log["ratio"] == pytest.approx(0.5 - ORACLE_STEP)
    assert repaired.log["rule"].startswith("oracle: strongest")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


class NormWithoutWeights(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.bn3 = nn.BatchNorm2d(8, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        first = torch.relu(self.bn1(self.conv1(images)))
        third = torch.relu(self.bn3(self.conv3(first)))
        return self.linear(third.mean((2, 3)))  # type: ignore[no-any-return]


NETWORKS = {
    "tiny": (tiny, 12),
    "resnet18": (lambda: small("resnet18", width=2), 16),
    "preactresnet18": (lambda: small("preactresnet18", width=2), 16),
    "vgg11_bn": (lambda: small("vgg11_bn", width=2), 16),
    "mobilenet_v3_small": (lambda: mobilenet_v3_small(num_classes=5).eval(), 32),
    "without weights": (lambda: shaken(NormWithoutWeights()), 12),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_channels_stay_silent_and_the_others_are_tuned(name: str) -> None:
    make, size = NETWORKS[name]
    model = make()
    before = {key: tensor.clone() for key, tensor in model.named_parameters()}
    images, seen = random_images(8, size=size), []
    repaired = FP(ratio=0.5, epochs=1, batch_size=4, lr=0.05).repair(model, budget_of(images, size))
    assert repaired.model is model
    assert repaired.mask is not None
    ((layer, pruned),) = repaired.mask.pruned.items()
    assert pruned.sum() == len(pruned) // 2
    assert not any(module.training or module._forward_hooks for module in model.modules())
    # A copy: an activation in place would overwrite what the layer puts out, and may silence any channel.
    model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    model(loaded(images, model).images)
    (maps,) = seen
    assert not maps[:, pruned].any()
    assert maps[:, ~pruned].transpose(0, 1).flatten(1).any(1).all()
    state = model.state_dict()
    for key in (f"{layer}.weight", f"{layer}.bias"):
        if key in state:
            assert not state[key][pruned].any()
            assert not torch.equal(state[key], before[key])
    assert all(tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize("name", ["tiny", "without weights"])
def test_pruned_channels_are_silent_in_every_step(name: str) -> None:
    """In train mode a BatchNorm without weights puts a channel out whatever its statistics: a mask alone is not enough."""
    model, inputs = NETWORKS[name][0](), []
    model.linear.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0].detach().clone()) if module.training else None
    )
    repaired = FP(ratio=0.5, epochs=2, batch_size=5).repair(model, budget_of(random_images(10)))
    assert repaired.mask is not None
    (pruned,) = repaired.mask.pruned.values()
    assert len(inputs) == 4
    for features in inputs:
        assert not features[:, pruned].any()
        assert features[:, ~pruned].any()


def test_nothing_pruned_is_plain_fine_tuning() -> None:
    images, options = random_images(12), {"epochs": 2, "batch_size": 5, "lr": 0.02}
    pruned, tuned = tiny(), tiny()
    FP(ratio=0.0, **options).repair(pruned, budget_of(images), seed=5)  # type: ignore[arg-type]
    FT(**options).repair(tuned, budget_of(images), seed=5)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), tuned.parameters(), strict=True))


def test_same_seed_same_result_and_progress_rises_to_the_end() -> None:
    def run(seed: int, told: list[tuple[int, int]]) -> Any:
        fp = FP(epochs=3, batch_size=5, step=0.1)
        return fp.repair(tiny(), budget_of(random_images(20)), seed=seed, progress=lambda *now: told.append(now))

    told: list[tuple[int, int]] = []
    first, again, other = run(1, told), run(1, []), run(2, [])
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(first.log["losses"]) == 3
    assert (first.mask, first.log) == (again.mask, again.log)
    states = [run.model.state_dict() for run in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def test_a_crash_leaves_no_hook() -> None:
    model = tiny()
    with pytest.raises(ConfigError, match="diverged"):
        FP(ratio=0.5, lr=1e30).repair(model, budget_of(random_images(12)))
    assert not any(module._forward_hooks for module in model.modules())


# --- options and budgets ---------------------------------------------------------------------------------------------


def test_defaults() -> None:
    fp = FP()
    assert (fp.ratio, fp.step, fp.tolerance, fp.held_out) == (None, 0.01, 0.05, 0.2)
    assert (fp.epochs, fp.lr, fp.batch_size, fp.budget, fp.chooses) == (20, 0.005, 128, "benign", "ratio")


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 1.0}, {"ratio": -0.1}, {"ratio": float("nan")}, {"step": 0.0}, {"step": 1.0}, {"step": 1e-9},
        {"tolerance": -0.01}, {"tolerance": 1.5}, {"held_out": 0.0}, {"held_out": 1.0}, {"epochs": -1},
    ],
)  # fmt: skip
def test_impossible_options_are_refused_before_anything_runs(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"fp: expected {next(iter(options))} "):
        FP(**options)


@pytest.mark.parametrize("images", [None, random_images(1)])
def test_too_few_images_are_refused(images: ArrayImages | None) -> None:
    with pytest.raises(ConfigError, match="expected at least 2 benign images"):
        FP().repair(tiny(), budget_of(images))


def test_two_images_and_a_missing_class_are_enough() -> None:
    images = random_images(30)
    for few in (random_images(2), images.take(np.flatnonzero(images.labels != 2))):
        assert FP(epochs=1).repair(tiny(), budget_of(few)).mask is not None


def test_more_images_than_there_are_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"holds 12 benign images; give 2 to 12, found 13"):
        draw_budget(fake_record(), "fp", FP(), n=13)


@pytest.mark.parametrize("protocol", ["defender", "oracle"])
def test_through_the_runner(protocol: Any) -> None:
    record = fake_record()
    before = copy.deepcopy(record.model.state_dict())
    run = run_defense(plan_defense(record, "fp", FP(epochs=1, step=0.25), {}, protocol=protocol))
    assert (run.outcome.budget, run.outcome.protocol) == ("benign:12", protocol)
    assert run.outcome.mask is not None
    assert run.outcome.model_dump_json()
    assert all(torch.equal(tensor, before[key]) for key, tensor in record.model.state_dict().items())
