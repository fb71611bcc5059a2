"""Every claim is decided by its rule: evidence for it, against it, and none at all."""

from dataclasses import replace

import pandas as pd
import pytest

from secalign_kit.evaluation import rate
from secalign_kit.studies import ledger, study
from secalign_kit.studies.ledger import CLAIMS, VERDICTS, Evidence

N = 200
LOW = {"secalign", "secalign_kit", "secalign_20", "secalign_20_as_long", "secalign_half_rate",
       "secalign_double_rate", "secalign_random", "secalign_plus", "kto", "ipo", "simpo"}


def share(variant: str, condition: str, measure: str) -> float:
    """A made-up world in which every claim of the papers holds."""
    if measure == "utility":
        return 0.8 if variant == "secalign_double_rate" else 0.99
    if measure != "asr":
        return 0.9
    if variant == "insecure":
        return 0.9
    if variant in LOW:
        found = {"start": 0.3 * (variant == "secalign_double_rate"), "no_filter": 0.5}
        strength = condition.removeprefix("seen_strength_")
        return 0.9 * (1 - float(strength)) if strength != condition else found.get(condition, 0.0)
    return 0.25


def row(model, attacker, where, early, late=None, n=100, allowed=500) -> dict:
    """A row of searches: so many succeed in a few steps, and so many in the end."""
    late = early if late is None else late
    return {"model": model, "attacker": attacker, "where": where, "target": "witness", "n": n,
            "allowed": allowed, "successes": [9] * early + [90] * (late - early)}


def searched(changes=None) -> dict:
    """Made-up searches with which every claim holds; `changes` are of variants or of rows."""
    changes = changes or {}
    rows = {("secalign", "gcg", "suffix, end"): (20, 80),
            ("secalign", "warm_start", "suffix, end"): (99,),
            ("secalign", "random", "suffix, end"): (9, 40),
            ("secalign_adaptive", "random", "suffix, end"): (0,),
            ("secalign_adaptive", "embeddings", "radius 4, suffix, end"): (100,)}
    for where in ("suffix, end", "prefix, end", "around, end", "suffix, start", "prefix, start",
                  "suffix, middle", "suffix of 20, end", "suffix of 40, end"):
        rows["secalign_adaptive", "gcg", where] = (0, 4)
    variants = {"secalign": 10, "struq": 99, "orpo": 60, "kto": 10} | changes
    return {"adapters": [row(*name, *counts) for name, counts in (rows | changes).items()
                         if isinstance(name, tuple)],
            "searches": [row(v, "gcg", "suffix, end", variants[v], 100, allowed=100)
                         for v in ("secalign", "struq", "orpo", "kto")]}


def world(changes=None, own=(50, 100), **found) -> Evidence:
    """`share` as evidence; `changes` maps (variant, condition, measure) to another share."""
    rows = []
    for variant, conditions in study.ASKED.items():
        for seed in range(1 if variant == "insecure" else 3):
            for condition in conditions:
                asked = study.CONDITIONS[condition]
                pairs = ([("utility", "none")] if not asked.attacks and asked.target == "witness"
                         else [("fidelity", "fidelity")] if asked.target == "fidelity" else
                         [(m, a) for a in asked.attacks for m in ("asr", "right")])
                for measure, attack in pairs:
                    value = (changes or {}).get((variant, condition, measure),
                                                share(variant, condition, measure))
                    rows.append((variant, seed, condition, measure, attack, round(value * N), N))
    shifts = pd.DataFrame([
        {"variant": variant, "seed": seed, "n": 300, "chosen_before": -2.5,
         "chosen_after": -0.5, "rejected_before": -1.0, "rejected_after": rejected}
        for variant, rejected in (("secalign", -19.0), ("struq", -7.0)) for seed in range(3)])
    trajectories = pd.DataFrame(columns=["variant", "seed", "step", "chosen", "rejected"])
    return Evidence(pd.DataFrame(rows, columns=list(study.COLUMNS)), trajectories, shifts, own,
                    **(searched() | found))


def verdict(name: str, evidence: Evidence) -> str:
    return CLAIMS[name][1](evidence)[1]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_where_it_is_true(name):
    assert verdict(name, world()) == "holds"


@pytest.mark.parametrize(("name", "changes"), [
    ("obey", {("insecure", "seen", "asr"): 0.5}),
    ("prompting", {("insecure", "seen_sandwich", "asr"): 0.2}),
    ("struq", {("struq", "seen", "asr"): 0.6}),
    ("struq", {("struq", "seen", "asr"): 0.0, ("struq", "unseen", "asr"): 0.0}),
    ("near_zero", {("secalign", "unseen", "asr"): 0.05}),
    ("near_zero", {("secalign", "payload", "asr"): 0.05}),
    ("utility", {("secalign", "clean", "utility"): 0.95}),
    ("few_pairs", {("secalign_20", "seen", "asr"): 0.25}),
    ("learning_rate", {("secalign_half_rate", "seen", "asr"): 0.25}),
    ("dial", {("secalign", "seen_strength_0.75", "asr"): 0.7}),
    ("start", {("secalign_random", "start", "asr"): 0.3}),
    ("position_utility", {("secalign_double_rate", "clean", "utility"): 0.99}),
    ("self_responses", {("secalign_plus", "clean", "utility"): 0.9}),
    ("filter", {("secalign", "no_filter", "asr"): 0.0}),
    ("witness", {("secalign", "witness-zebedee", "asr"): 0.1}),
    ("witness", {("insecure", "witness-zebedee", "asr"): 0.3}),
])
def test_a_claim_does_not_hold_where_it_is_false(name, changes):
    assert verdict(name, world(changes)) == "does not hold"


@pytest.mark.parametrize(("name", "changes"), [
    ("algorithms", {"kto": 50}), ("algorithms", {"orpo": 15}), ("gradients", {"struq": 15}),
    ("budget", {("secalign", "gcg", "suffix, end"): (20, 55)}),
    ("warm_start", {("secalign", "warm_start", "suffix, end"): (60, 85)}),
    ("loop", {("secalign_adaptive", "gcg", "suffix, end"): (0, 75)}),
    ("places", {("secalign_adaptive", "gcg", "around, end"): (0, 6)}),
    ("hidden", {("secalign_adaptive", "embeddings", "radius 4, suffix, end"): (0, 99)}),
    ("hidden", {("secalign_adaptive", "random", "suffix, end"): (30,)})])
def test_a_claim_about_searches_does_not_hold_where_it_is_false(name, changes):
    assert verdict(name, world(**searched(changes))) == "does not hold"


def test_searches_that_were_not_run_are_named_and_decide_nothing():
    entries = {e.claim: e for e in ledger.ledger(world(searches=(), adapters=()))}
    lacking = {name for name, e in entries.items() if e.ours.startswith("not measured: no ")}
    assert lacking == {"algorithms", "gradients", "budget", "warm_start", *ledger.OWN}
    assert {entries[name].verdict for name in lacking} == {"not testable here"}
    short = [row("secalign", "gcg", "suffix, end", 20, 80, allowed=100)]
    ours = {e.claim: e.ours for e in ledger.ledger(world(adapters=short))}
    assert "no gcg of 200 steps against secalign (suffix, end)" in ours["budget"]
    assert "no warm_start of 100 steps" in ours["warm_start"]


@pytest.mark.parametrize(("column", "value"), [
    ("chosen_after", -4.0), ("rejected_after", -5.0), ("rejected_after", -6.5)])
def test_one_seed_is_enough_to_refute_the_claim_about_log_probs(column, value):
    evidence = world()
    evidence.shifts.loc[1, column] = value
    assert verdict("logprobs", evidence) == "does not hold"


def test_what_cannot_be_told_apart_here_is_called_not_testable():
    assert verdict("self_responses", world(own=(990, 1000))) == "not testable here"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_missing_measurement_is_named_not_guessed(name):
    full = world()
    empty = Evidence(full.counts[full.counts.variant == "none"], full.trajectories,
                     full.shifts[full.shifts.variant == "struq"], (0, 0))
    with pytest.raises(ValueError, match=r"study|no \w+ of"):
        CLAIMS[name][1](empty)


def test_rates_pool_seeds_and_attacks():
    evidence = world()
    assert evidence.rate("struq", "seen", "asr") == rate(4 * 3 * 50, 4 * 3 * N)
    assert evidence.rate("struq", "seen", "asr", ["naive"], seed=0) == rate(50, N)
    assert evidence.seeds("struq") == 3


def test_intervals_that_touch_are_not_apart():
    assert ledger.apart(rate(60, 100), rate(20, 100))
    assert not ledger.apart(rate(25, 100), rate(20, 100))
    assert not ledger.apart(rate(20, 100), rate(60, 100))


def test_evidence_survives_the_disk(tmp_path):
    evidence = world()
    ledger.save_evidence(evidence, tmp_path)
    again = ledger.load_evidence(tmp_path)
    pd.testing.assert_frame_equal(again.counts, evidence.counts)
    again = replace(again, adapters=evidence.adapters)  # they are kept elsewhere
    assert ledger.ledger(again) == ledger.ledger(evidence)
    (tmp_path / "shifts.csv").unlink()
    with pytest.raises(ValueError, match="lacks shifts.csv"):
        ledger.load_evidence(tmp_path)


def test_the_papers_numbers_are_facts_with_a_source():
    facts = pd.read_csv(ledger.FACTS)
    assert set(facts.claim) <= set(CLAIMS) and facts.source.notna().all()
    known = r"(SecAlign|StruQ|Meta SecAlign), (table|tables|section)"
    assert facts.source.str.match(rf"{known}|(Checkpoint-GCG|.* Moves Second), reported").all()
    for name in CLAIMS:
        said = ledger.paper_numbers(facts[facts.claim == name])
        assert ("no number" in said) == (name not in set(facts.claim))
    assert not ledger.OWN & set(facts.claim)


# --- The shipped evidence -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return ledger.load_evidence()


def test_the_shipped_evidence_has_three_seeds_and_every_condition(shipped):
    for variant, conditions in study.ASKED.items():
        rows = shipped.counts[shipped.counts.variant == variant]
        assert rows.seed.nunique() == (1 if variant == "insecure" else 3), variant
        assert set(rows.condition) == set(conditions), variant
        if variant != "insecure":
            assert (shipped.shifts.variant == variant).sum() == 3
    assert shipped.attacks("secalign", "unseen") == list(study.UNSEEN)


def test_every_claim_of_the_shipped_ledger_has_a_verdict(shipped):
    entries = ledger.ledger(shipped)
    assert len(entries) >= 14 and {e.verdict for e in entries} <= set(VERDICTS)


def test_the_readme_prints_the_shipped_ledger(shipped):
    readme = (ledger.DATA.parent / "docs" / "ledger.md").read_text(encoding="utf-8")
    assert ledger.markdown(ledger.ledger(shipped)) in readme
