"""The study trains what is missing, asks every condition, and its tables are views of records."""

import json

import pandas as pd
import pytest

from secalign_kit import injections
from secalign_kit.config import RunConfig
from secalign_kit.samples import DATA, shipped_samples
from secalign_kit.studies import study


def test_variants_differ_from_the_base_in_what_they_say():
    for variant, changes in study.VARIANTS.items():
        settings = study.config(variant)
        for name, value in changes.items():
            assert getattr(settings, name) == value
    assert study.config("secalign") == study.BASE


def test_a_variant_keeps_its_proportion_to_another_base():
    other = study.BASE.replace(model="qwen2.5-0.5b", n_pairs=1000, learning_rate=1e-4)
    few, fast = (study.config(v, other) for v in ("secalign_20", "secalign_double_rate"))
    assert (few.model, few.n_pairs, few.learning_rate) == (other.model, 200, 1e-4)
    assert (fast.n_pairs, fast.learning_rate) == (1000, pytest.approx(2e-4))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="choose one of secalign"):
        study.config("secaline")


def test_every_attack_is_seen_or_unseen_and_never_both():
    seen = {"naive", *study.PAPER_ATTACKS}
    assert seen | set(study.UNSEEN) == set(injections.ATTACKS) and not seen & set(study.UNSEEN)


def test_every_variant_is_asked_known_conditions_and_always_its_utility():
    assert set(study.ASKED) == {"insecure", *study.VARIANTS}
    for names in study.ASKED.values():
        assert set(names) <= set(study.CONDITIONS) and {"clean", "seen"} <= set(names)


@pytest.mark.parametrize("name", study.CONDITIONS)
def test_a_condition_makes_the_items_it_names(name, toy):
    condition = study.CONDITIONS[name]
    items = condition.items(toy, 2)
    if condition.target == "fidelity":
        assert {i.attack for i in items} == {"fidelity"}
    elif not condition.attacks:
        assert len(items) == len(shipped_samples("heldout")) and items[0].attack == "none"
        assert name.startswith("clean")
    else:
        assert [i.attack for i in items] == [a for a in condition.attacks for _ in range(2)]
        assert {i.target for i in items} == {condition.target}


def test_the_words_of_the_witnesses_stand_in_their_items(toy):
    for witness in injections.OTHER_WITNESSES:
        for item in study.CONDITIONS[witness.id].items(toy, 3):
            assert item.witness == witness.answer and witness.answer in item.data


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "BASE", study.BASE.replace(n_pairs=32, batch_size=16))
    monkeypatch.setattr(study, "VARIANTS", {"secalign": {}})
    monkeypatch.setattr(study, "SEARCHED", ())
    monkeypatch.setattr(study, "GCG", study.attackers.Budget(1, 8))
    monkeypatch.setattr(study, "ASKED", {"insecure": ("seen", "fidelity"), "secalign": ("seen",)})


def test_a_study_is_made_once_and_goes_on(small, tmp_path, monkeypatch):
    first = study.run_study(tmp_path, seeds=1, n=2)
    assert list(first.columns) == list(study.COLUMNS)
    assert set(first.variant) == {"insecure", "secalign"}
    assert set(first[first.condition == "fidelity"].measure) == {"fidelity", "treated_as_request"}
    path = tmp_path / "secalign-0" / "records" / "seen.jsonl"
    path.write_text(path.read_text()[:-30])  # killed while it wrote
    monkeypatch.setattr(study.training, "train", None)  # training again would fail
    again = study.run_study(tmp_path, seeds=1, n=2)
    pd.testing.assert_frame_equal(first, again)
    assert study.trajectories(tmp_path).step.tolist()[0] == 0
    shift = study.shifts(tmp_path)
    assert shift.variant.tolist() == ["secalign"] and (shift.n == 300).all()


def test_a_study_counts_what_was_asked_and_refuses_another_model(small, tmp_path, monkeypatch):
    study.run_study(tmp_path, seeds=1, n=2)
    more = study.run_study(tmp_path, seeds=1, n=3)
    assert (more[more.measure == "asr"].n == 3).all()  # not 2 and 3 together
    before = {p: p.read_bytes() for p in tmp_path.glob("*/records/*")}
    with pytest.raises(ValueError, match="another configuration"):
        study.run_study(tmp_path, seeds=1, n=2, base=study.BASE.replace(four_bit=False))
    assert before == {p: p.read_bytes() for p in tmp_path.glob("*/records/*")}


def test_a_study_takes_another_model_by_its_folder(small, tmp_path):
    base = study.BASE.replace(model=str(DATA / "model"), format="toy", four_bit=False)
    counts = study.run_study(tmp_path, seeds=1, n=2, base=base)
    assert set(counts.variant) == {"insecure", "secalign"}
    settings = RunConfig.from_yaml(tmp_path / "secalign-0" / "config.yaml")
    assert (settings.model, settings.n_pairs) == (base.model, 32)


def test_searches_of_a_study_are_made_once(small, tmp_path, monkeypatch):
    rows = study.search_study(tmp_path, 2, ["secalign"])
    assert [(r["model"], r["n"], r["allowed"], r["candidates"]) for r in rows] == [
        ("secalign", 2, 1, 8)]
    monkeypatch.setattr(study.training, "train", None)
    monkeypatch.setattr(study.attackers, "gcg", None)
    assert study.search_study(tmp_path, 2, ["secalign"]) == rows
    assert json.loads((tmp_path / study.SEARCHES).read_text()) == rows
    with pytest.raises(ValueError, match="at least one sample"):
        study.search_study(tmp_path, 0)


def test_counts_are_sums_over_the_records(tmp_path):
    base = {"right": False, "obeyed": True}
    records = [{"attack": "none", **base}, {"attack": "ignore", **base},
               {"attack": "ignore", "right": True, "obeyed": False}]
    folder = tmp_path / "struq-1" / "records"
    folder.mkdir(parents=True)
    (folder / "seen.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    counts = study.measurements(tmp_path).set_index(["measure", "attack"])
    assert counts.loc[("asr", "ignore"), ["successes", "n"]].tolist() == [1, 2]
    assert counts.loc[("right", "ignore"), "successes"] == 1
    assert counts.loc[("utility", "none"), ["successes", "n"]].tolist() == [0, 1]
    assert set(counts.variant) == {"struq"} and set(counts.seed) == {1}


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no records"):
        study.measurements(tmp_path)
    with pytest.raises(ValueError, match="at least one of each"):
        study.run_study(tmp_path, n=0)
