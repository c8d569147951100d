"""TAC against a naive float64 implementation that keeps whole feature maps."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_records import TinyNet, fake_record, normalized, shaken
from torch import Tensor, nn

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.evidence.tac import trigger_activated_change
from clp_plugin.fusion.layers import fuse
from clp_plugin.images import ArrayImages
from clp_plugin.types import Record, TriggeredSet


def linear_map(model: nn.Module, name: str, image: Tensor) -> Tensor:
    """What the layer gives before any activation for one image, ``(channels, positions)``, at its first call.

    A norm's output is computed here from its input by the definition of BatchNorm, so that a module that also holds the
    activation (timm) is taken apart.
    """
    found: list[Tensor] = []

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        maps = output.clone()
        if hasattr(module, "running_var"):
            shape = (1, -1, *[1] * (args[0].ndim - 2))
            scale = (module.running_var + module.eps) ** -0.5 * (1 if module.weight is None else module.weight)
            shift = 0 if module.bias is None else module.bias.view(shape)
            maps = (kept.pop() - module.running_mean.view(shape)) * scale.view(shape) + shift
        if isinstance(module, nn.Linear):
            maps = maps.reshape(-1, maps.shape[-1])
            found.append(maps.T)
        else:
            found.append(maps.transpose(0, 1).flatten(1))  # (channels, rows of the batch x positions)

    kept: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept[:] = [args[0].clone()]

    module = model.get_submodule(name)
    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(hook)]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return found[0]


def naive_tac(record: Record, name: str, norm: str, count: int | None = None) -> np.ndarray:
    """Mean over pairs of || F_k(triggered) - F_k(clean) ||, image by image."""
    model = copy.deepcopy(record.model).double()
    clean, triggered = record.clean, record.triggered.images
    assert isinstance(clean, ArrayImages)
    assert isinstance(triggered, ArrayImages)
    sizes = []
    for i, twin in enumerate(record.triggered.clean_index[:count]):
        changed = linear_map(model, name, normalized(triggered, i)) - linear_map(model, name, normalized(clean, twin))
        power = changed.abs().numpy()
        sizes.append((power**2).sum(1) ** 0.5 if norm == "l2" else power.sum(1))
    return np.mean(sizes, axis=0)


def check(record: Record, norm: str = "l2", rtol: float = 2e-5, **options: Any) -> dict[str, Any]:
    view = fuse(record.model, record.input_shape)
    found = trigger_activated_change(view, record, norm=norm, **options)  # type: ignore[arg-type]
    assert list(found) == [layer.name for layer in view.layers]
    for layer in view.layers:
        expected = naive_tac(record, layer.name, norm, options.get("max_images"))
        np.testing.assert_allclose(found[layer.name], expected, rtol=rtol, atol=1e-7, err_msg=layer.name)
        assert found[layer.name].dtype == np.float64
    return found


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_every_kind_of_layer_agrees_with_whole_feature_maps(norm: str) -> None:
    record = fake_record(count=15)
    kinds = {layer.kind for layer in fuse(record.model, record.input_shape).layers}
    assert kinds == {"fused", "diagonal", "conv", "head"}
    found = check(record, norm)
    assert all((values > 0).any() for values in found.values())


def test_the_two_norms_differ_where_maps_have_positions_and_agree_where_not() -> None:
    record = fake_record(count=10)
    view = fuse(record.model, record.input_shape)
    l2, l1 = (trigger_activated_change(view, record, norm=norm) for norm in ("l2", "l1"))  # type: ignore[arg-type]
    assert (l1["bn1"] > 1.5 * l2["bn1"]).all()
    np.testing.assert_allclose(l1["linear"], l2["linear"], rtol=1e-6)


def test_only_the_first_pairs_are_used_on_request() -> None:
    check(fake_record(count=15), max_images=4)
    record = fake_record(count=15)
    view = fuse(record.model, record.input_shape)
    all_of_them = trigger_activated_change(view, record)
    too_many = trigger_activated_change(view, record, max_images=1000)
    np.testing.assert_array_equal(all_of_them["bn1"], too_many["bn1"])


class Shared(nn.Module):
    """One convolution and norm called twice, with different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.tanh(self.stem(images))
        for _ in range(2):
            maps = torch.tanh(self.norm(self.conv(maps)))
        logits: Tensor = self.linear(maps.mean(dim=(2, 3)))
        return logits


class InPlace(nn.Module):
    """In-place operations overwrite what hooks saw."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.lone = nn.Conv2d(4, 6, 1)
        self.linear = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images)).relu_()
        logits: Tensor = self.linear(self.lone(maps).mul_(3).relu_().amax(dim=(2, 3)))
        return logits


class Tokens(nn.Module):
    """BatchNorm1d on tokens that are flattened into the batch, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.inner = nn.Linear(6, 7, bias=False)
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.relu(self.patch(images)).flatten(2).transpose(1, 2)
        mixed = self.inner(tokens)
        normed = self.norm(mixed.flatten(0, 1)).view_as(mixed)
        logits: Tensor = self.head(torch.relu(normed).mean(1))
        return logits


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("kind", [Shared, InPlace, Tokens])
def test_unusual_networks_agree_with_whole_feature_maps(kind: type[nn.Module], norm: str) -> None:
    check(fake_record(kind(), count=9), norm)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_norm_that_contains_its_activation_is_measured_before_it(norm: str) -> None:
    timm = pytest.importorskip("timm")

    class WithAct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.bn = timm.layers.BatchNormAct2d(8)
            self.linear = nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.linear(self.bn(self.conv(images)).mean(dim=(2, 3)))
            return logits

    record = fake_record(WithAct(), count=9)
    found = check(record, norm)
    view = fuse(record.model, record.input_shape)
    with torch.no_grad():
        record.model.bn.bias.fill_(-1e3)  # type: ignore[union-attr]  # nothing gets through the activation
    np.testing.assert_allclose(trigger_activated_change(view, record, norm=norm)["bn"], found["bn"])  # type: ignore[arg-type]


def test_layer_that_does_not_run_in_eval_mode_is_nan_and_the_others_are_not() -> None:
    class Auxiliary(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Conv2d(6, 4, 3)
            self.aux_bn = nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Any:
            if self.training:
                return super().forward(images), self.aux_bn(self.aux(torch.relu(self.bn1(self.conv1(images)))))
            return super().forward(images)

    record = fake_record(Auxiliary(), count=6)
    view = fuse(record.model, record.input_shape)
    found = trigger_activated_change(view, record)
    assert {name for name, values in found.items() if np.isnan(values).all()} == {"aux_bn"}
    assert found["aux_bn"].shape == (4,)
    assert not any(np.isnan(values).any() for name, values in found.items() if name != "aux_bn")


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_the_result_by_rounding_only(batch_size: int) -> None:
    record = fake_record(count=60, seed=4)
    view = fuse(record.model, record.input_shape)
    whole = trigger_activated_change(view, record, batch_size=25)
    parts = trigger_activated_change(view, record, batch_size=batch_size)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-5, err_msg=name)


def test_no_batch_is_larger_than_asked_for() -> None:
    record = fake_record(count=60)
    sizes: list[int] = []
    handle = record.model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    view = fuse(record.model, record.input_shape)
    sizes.clear()
    trigger_activated_change(view, record, batch_size=8)
    handle.remove()
    assert max(sizes) == 16  # a pair is two images
    assert sum(sizes) == 2 * len(record.triggered.images)


def test_nothing_changed_means_zero() -> None:
    record = fake_record(count=10)
    same = replace(
        record, triggered=TriggeredSet(record.clean.take(record.triggered.clean_index), record.triggered.clean_index)
    )
    found = trigger_activated_change(fuse(same.model, same.input_shape), same)
    assert all((values < 1e-5).all() for values in found.values())


def test_pairs_are_matched_by_index_and_not_by_position() -> None:
    record = fake_record(count=30)
    order = np.random.default_rng(3).permutation(len(record.triggered.clean_index))
    moved = replace(
        record, triggered=TriggeredSet(record.triggered.images.take(order), record.triggered.clean_index[order])
    )
    view = fuse(record.model, record.input_shape)
    first, second = trigger_activated_change(view, record), trigger_activated_change(view, moved)
    np.testing.assert_allclose(first["bn1"], second["bn1"], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.bfloat16, 0.1)])
def test_checkpoint_of_any_precision_works(dtype: torch.dtype, rtol: float) -> None:
    record = fake_record(count=10)
    expected = trigger_activated_change(fuse(record.model, record.input_shape), record)
    other = replace(record, model=copy.deepcopy(record.model).to(dtype))
    found = trigger_activated_change(fuse(other.model, other.input_shape), other)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=max(rtol, 1e-4), atol=rtol * values.max(), err_msg=name)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_model_is_left_as_it_was() -> None:
    record = fake_record(count=6)
    model = record.model
    model.bn1.train()  # type: ignore[union-attr]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    view = fuse(model, record.input_shape)
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    trigger_activated_change(view, record)
    assert hooks(model) == 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_hooks_go_when_the_model_fails_half_way() -> None:
    record = fake_record(count=20)
    view = fuse(record.model, record.input_shape)
    calls = 0

    def fail(_module: nn.Module, _args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")

    handle = record.model.get_submodule("conv3").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trigger_activated_change(view, record, batch_size=4)
    handle.remove()
    assert hooks(record.model) == 0


def test_wrapped_model_gives_the_same() -> None:
    record = fake_record(count=6)
    expected = trigger_activated_change(fuse(record.model, record.input_shape), record)
    wrapped = replace(record, model=nn.DataParallel(record.model))
    found = trigger_activated_change(fuse(wrapped.model, wrapped.input_shape), wrapped)
    assert list(found) == list(expected)
    np.testing.assert_array_equal(found["bn_sum"], expected["bn_sum"])


def test_impossible_requests_are_refused() -> None:
    record = fake_record(count=6)
    view = fuse(record.model, record.input_shape)
    with pytest.raises(ConfigError, match=r"unknown TAC norm 'l3'; known: l1, l2"):
        trigger_activated_change(view, record, norm="l3")  # type: ignore[arg-type]
    for option in ("max_images", "batch_size"):
        with pytest.raises(ConfigError, match=rf"{option}: expected at least 1, found 0"):
            trigger_activated_change(view, record, **{option: 0})  # type: ignore[arg-type]
    nothing = np.zeros(0, dtype=np.int64)
    empty = replace(record, triggered=TriggeredSet(record.clean.take(nothing), nothing))
    with pytest.raises(RecordError, match="expected triggered test images"):
        trigger_activated_change(view, empty)


def test_progress_reaches_the_end() -> None:
    record = fake_record(count=20)
    calls: list[tuple[int, int]] = []
    view = fuse(shaken(record.model), record.input_shape)
    trigger_activated_change(view, record, batch_size=6, progress=lambda done, total: calls.append((done, total)))
    total = len(record.triggered.images)
    assert calls == [(min(done, total), total) for done in range(6, total + 6, 6)]
