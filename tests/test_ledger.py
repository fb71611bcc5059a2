"""Every claim is decided by its rule: evidence for it, against it, and none at all."""

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


def world(changes=None, own=(50, 100)) -> Evidence:
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
    return Evidence(pd.DataFrame(rows, columns=list(study.COLUMNS)), trajectories, shifts, own)


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
    ("algorithms", {("kto", "seen", "asr"): 0.25}),
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


@pytest.mark.parametrize(("column", "value"), [
    ("chosen_after", -4.0), ("rejected_after", -5.0), ("rejected_after", -6.5)])
def test_one_seed_is_enough_to_refute_the_claim_about_log_probs(column, value):
    evidence = world()
    evidence.shifts.loc[1, column] = value
    assert verdict("logprobs", evidence) == "does not hold"


def test_what_cannot_be_told_apart_here_is_called_not_testable():
    assert verdict("algorithms", world({("orpo", "seen", "asr"): 0.0})) == "not testable here"
    assert verdict("self_responses", world(own=(990, 1000))) == "not testable here"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_missing_measurement_is_named_not_guessed(name):
    full = world()
    empty = Evidence(full.counts[full.counts.variant == "none"], full.trajectories,
                     full.shifts[full.shifts.variant == "struq"], (0, 0))
    with pytest.raises(ValueError, match="study"):
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
    assert ledger.ledger(again) == ledger.ledger(evidence)
    (tmp_path / "shifts.csv").unlink()
    with pytest.raises(ValueError, match="lacks shifts.csv"):
        ledger.load_evidence(tmp_path)


def test_the_papers_numbers_are_facts_with_a_source():
    facts = pd.read_csv(ledger.FACTS)
    assert set(facts.claim) <= set(CLAIMS) and facts.source.notna().all()
    assert facts.source.str.match(r"(SecAlign|StruQ|Meta SecAlign), (table|tables|section)").all()
    for name in CLAIMS:
        said = ledger.paper_numbers(facts[facts.claim == name])
        assert ("no number" in said) == (name not in set(facts.claim))


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
