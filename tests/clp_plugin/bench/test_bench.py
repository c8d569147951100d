"""The runner: what a defense gets, what it cannot change, and what is written down about it."""

from __future__ import annotations

import dataclasses
import json
import random
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting import calls_counted
from fake_records import fake_record
from torch import nn

from clp_plugin.bench.run import DefenseRun, make_defense, plan_defense, run_defense, save_defense
from clp_plugin.cli.showing import defense_json
from clp_plugin.defenses.base import Budget, Defense, Repaired
from clp_plugin.errors import ConfigError, RegistryError
from clp_plugin.evaluation.judging import RecordJudge
from clp_plugin.evaluation.metrics import evaluate, judge
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.fusion.layers import fuse
from clp_plugin.masking.apply import load_mask
from clp_plugin.registry import Catalogue, Entry, load_catalogue
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import select
from clp_plugin.store.outcomes import load_outcome
from clp_plugin.types import Mask, Progress, Record, defense_effectiveness


@dataclass
class Spy:
    """Remembers what it was given and disturbs the model with noise."""

    budget: Any = "none"
    strength: float = 0.1
    tags: list[str] = field(default_factory=list)

    def repair(self, model: nn.Module, budget: Budget, *, seed: int, progress: Progress | None = None) -> Repaired:
        self.given, self.seed, self.model, self.mode = budget, seed, model, model.training
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn(tensor.shape) * self.strength)
        if progress is not None:
            progress(1, 1)
        return Repaired(model, None, {"noise": torch.rand(()).item()})


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def run(record: Record, defense: Defense, *, judge: RecordJudge | None = None, **options: Any) -> DefenseRun:
    return run_defense(plan_defense(record, "spy", defense, {"strength": 0.1}, **options), judge=judge)


def test_data_free_defense_gets_no_image() -> None:
    record, spy = fake_record(), Spy()
    outcome = run(record, spy, seed=4).outcome
    assert spy.given == Budget((3, 12, 12), 5, record.provenance.mean, record.provenance.std)
    assert outcome.budget == "none"
    assert spy.seed == outcome.seed == 4
    seen = {"input_shape", "num_classes", "mean", "std", "benign", "poisoned", "judge"}
    assert {f.name for f in dataclasses.fields(Budget)} == seen
    assert (spy.given.benign, spy.given.poisoned, spy.given.judge) == (None, None, None)


def test_defense_with_a_budget_gets_the_benign_images_and_no_other() -> None:
    record, spy = fake_record(), Spy(budget="benign")
    outcome = run(record, spy).outcome
    (given,), (all_of_them,) = spy.given.benign.batches(99), record.benign.batches(99)
    assert torch.equal(given, all_of_them)
    assert (spy.given.poisoned, spy.given.judge) == (None, None)
    assert outcome.budget == f"benign:{len(record.benign)}"
    assert outcome.protocol == "defender"


def test_defense_works_on_its_own_copy_in_eval_mode() -> None:
    record, spy = fake_record(), Spy()
    before, found = state(record.model), run(record, spy)
    assert spy.model is not record.model
    assert spy.mode is False
    assert same(before, record.model.state_dict())
    assert not same(before, found.repaired.model.state_dict())
    assert not {t.data_ptr() for t in record.model.parameters()} & {t.data_ptr() for t in spy.model.parameters()}


def test_same_seed_twice_is_the_same_and_another_seed_is_not() -> None:
    record = fake_record()
    first, again, other = (run(record, Spy(strength=1.0), seed=seed) for seed in (7, 7, 8))
    assert same(first.repaired.model.state_dict(), again.repaired.model.state_dict())
    volatile = {"seconds", "created"}
    assert first.outcome.model_dump(exclude=volatile) == again.outcome.model_dump(exclude=volatile)
    assert first.outcome.log != other.outcome.log


def test_random_generators_of_the_caller_are_not_touched() -> None:
    record = fake_record()
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index,union-attr]
    run(record, Spy(), seed=11)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    assert before[2] == random.getstate()


def test_outcome_holds_both_measurements_and_where_they_come_from() -> None:
    record = fake_record()
    found = run(record, Spy(strength=1.0), command="bench defend --x", seed=2)
    assert found.before == evaluate(record.model, record)
    assert found.after == evaluate(found.repaired.model, record)
    assert found.before != found.after
    outcome = found.outcome
    assert outcome.before.model_dump() == found.before.to_json()
    assert outcome.after.model_dump() == found.after.to_json()
    assert outcome.der == defense_effectiveness(found.before, found.after)
    assert (outcome.method, outcome.options, outcome.command) == ("spy", {"strength": 0.1}, "bench defend --x")
    assert outcome.provenance == {**record.provenance.to_json(), "target": "target 1"}
    assert outcome.status == "ok"
    assert 0 <= outcome.seconds < 60
    assert outcome.pruned is None


def test_the_attacked_model_is_judged_once_for_all_runs_with_one_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = calls_counted(monkeypatch, judge)
    known = RecordJudge(fake_record())
    first, second = (run(fake_record(), Spy(), judge=known, seed=seed) for seed in (0, 1))
    assert counts["judge"] == 3
    assert first.before == second.before == evaluate(fake_record().model, fake_record())
    assert first.after != second.after


def test_failure_of_a_defense_leaves_the_record_alone() -> None:
    class Broken(Spy):
        def repair(self, model: nn.Module, budget: Budget, *, seed: int, progress: Progress | None = None) -> Repaired:
            super().repair(model, budget, seed=seed)
            raise RuntimeError("diverged")

    record = fake_record()
    before = state(record.model)
    with pytest.raises(RuntimeError, match="diverged"):
        run(record, Broken())
    assert same(before, record.model.state_dict())


def test_files_load_back_to_the_same_model_mask_and_outcome(tmp_path: Path) -> None:
    record = fake_record()
    defense, options = make_defense(load_catalogue(), "clp", "noise", {"u": 1.0})
    found = run_defense(plan_defense(record, "clp", defense, options))
    paths = save_defense(found, tmp_path / "new" / "folder")
    assert set(paths) == {"weights", "weights_pt", "mask", "outcome"}
    for name in ("weights", "weights_pt"):
        weights = load_checkpoint(Path(paths[name]))
        fresh = fake_record().model
        fresh.load_state_dict(weights)
        assert evaluate(fresh, record) == found.after
        assert same(dict(sorted(weights.items())), dict(sorted(found.repaired.model.state_dict().items())))
    assert load_mask(Path(paths["mask"])) == found.repaired.mask
    stored = load_outcome(Path(paths["outcome"]))
    assert stored.weights == "weights.safetensors"
    assert stored.model_dump(mode="json", exclude={"weights"}) == found.outcome.model_dump(
        mode="json", exclude={"weights"}
    )
    assert stored.mask is not None
    assert Mask.from_json(stored.mask) == found.repaired.mask


def test_defense_that_prunes_nothing_by_design_has_no_mask_file(tmp_path: Path) -> None:
    paths = save_defense(run(fake_record(), Spy()), tmp_path)
    assert "mask" not in paths
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outcome.json", "weights.pt", "weights.safetensors"]
    assert defense_json(run(fake_record(), Spy()), tmp_path)["mask"] is None


def catalogue(**objects: str) -> Catalogue:
    entries = {
        name: Entry(object=f"{__name__}:{thing}", summary="s", origin="here", defaults={"strength": 0.5})
        for name, thing in objects.items()
    }
    return Catalogue({"toolboxes": {}, "defenses": entries, "attacks": {}})


def plain(strength: float) -> Spy:
    """A defense may be any callable that returns one."""
    return Spy(strength=strength)


@dataclass
class Needy:
    needed: int
    strength: float = 0.0
    budget: Any = field(default="none", init=False)

    def repair(self, *_: Any, **__: Any) -> Any: ...


def test_options_win_over_the_catalogue_and_the_catalogue_over_the_class() -> None:
    known = catalogue(spy="Spy")
    assert make_defense(known, "spy", "x", {})[1] == {"budget": "none", "strength": 0.5, "tags": []}
    defense, used = make_defense(known, "spy", "x", {"strength": 2.0})
    assert used["strength"] == 2.0
    assert defense.strength == 2.0  # type: ignore[attr-defined]


def test_catalogue_knows_u_by_data_set() -> None:
    known = load_catalogue()
    assert [make_defense(known, "clp", name, {})[1]["u"] for name in ("cifar10", "tiny", "Tiny-ImageNet", "?")] == [
        3.0, 5.0, 5.0, 3.0,
    ]  # fmt: skip
    assert make_defense(known, "clp", "tiny", {"u": 1.0})[1]["u"] == 1.0


@pytest.mark.parametrize(("method", "name", "value"), [("clp", "u", 2), ("fp", "ratio", 0), ("ep", "bin_width", 1)])
def test_whole_number_for_an_option_that_is_a_float_is_the_same_run(method: str, name: str, value: int) -> None:
    whole, exact = (make_defense(load_catalogue(), method, "x", {name: given})[1] for given in (value, float(value)))
    assert json.dumps(whole) == json.dumps(exact)


def test_number_that_no_float_holds_is_left_for_the_defense_to_refuse() -> None:
    assert make_defense(catalogue(spy="Spy"), "spy", "x", {"strength": 10**400})[1]["strength"] == 10**400


def test_options_that_do_not_fit_are_refused_with_what_is_known() -> None:
    known = catalogue(spy="Spy", plain="plain", needy="Needy")
    with pytest.raises(ConfigError, match=r"defense 'spy': unknown option 'u'; known: budget, strength, tags"):
        make_defense(known, "spy", "x", {"u": 3.0})
    with pytest.raises(ConfigError, match=r"defense 'plain' does not take strength=0.5, u=3.0: .*'u'"):
        make_defense(known, "plain", "x", {"u": 3.0})
    with pytest.raises(ConfigError, match=r"defense 'needy' does not take strength=0.5: .*needed"):
        make_defense(known, "needy", "x", {})
    with pytest.raises(ConfigError, match=r"unknown option 'budget'; known: needed, strength"):
        make_defense(known, "needy", "x", {"budget": "benign"})
    assert make_defense(known, "needy", "x", {"needed": 1})[1] == {"needed": 1, "strength": 0.5}
    assert make_defense(known, "plain", "x", {})[1] == {"strength": 0.5}
    with pytest.raises(RegistryError, match=r"unknown defense 'nope'; known: needy, plain, spy"):
        make_defense(known, "nope", "x", {})


def test_what_is_no_defense_is_refused_before_it_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        class NoBudget:
            def repair(self, model, budget, *, seed, progress=None): ...
        class NoRepair:
            budget = "none"
        class Greedy:
            budget = "everything"
            def repair(self, model, budget, *, seed, progress=None): ...
        """)
    )
    (tmp_path / "mine.yaml").write_text(
        "defenses:\n"
        + "".join(f"  {n}: {{object: 'mine.py:{n}', summary: s}}\n" for n in ("NoBudget", "NoRepair", "Greedy"))
    )
    known = load_catalogue(tmp_path / "mine.yaml")
    for name in ("NoBudget", "NoRepair", "Greedy"):
        with pytest.raises(RegistryError, match=rf"{name}.* is no defense: expected an attribute `budget`"):
            make_defense(known, name, "x", {})


def test_clp_through_the_runner_is_the_five_library_calls() -> None:
    record = fake_record()
    defense, options = make_defense(load_catalogue(), "clp", "noise", {"u": 1.0})
    found = run_defense(plan_defense(record, "clp", defense, options))
    mask = select(score(fuse(record.model, record.input_shape)), 1.0)
    assert found.repaired.mask == mask
    assert found.outcome.pruned == len(mask) > 0
