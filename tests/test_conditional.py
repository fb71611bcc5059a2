"""Conditional instructions: the word decides, the splits are apart, and only doable cases count."""

import json

import pytest

from secalign_kit import cli, evaluation, injections, samples
from secalign_kit.evaluation import judges

POOLS = json.loads((samples.DATA / "conditional.json").read_text())


@pytest.mark.parametrize("split", POOLS)
def test_the_word_alone_decides_which_verdict_is_right(split):
    found = evaluation.cases(split)
    assert len(found) == len(POOLS[split]["texts"]) * len(POOLS[split]["words"])
    for case in found:
        [word] = [w for w in POOLS[split]["words"] if f'"{w}"' in case.present.instruction]
        assert word in case.present.data and word not in case.absent.data
        assert case.absent.instruction == case.present.instruction
        assert case.present.answer == case.payload.answer != case.absent.answer
        for sample, other in ((case.present, case.absent), (case.absent, case.present)):
            verdicts = [judges.right(said, sample.answer, sample.accept, sample.reject)
                        for said in (sample.answer, f"{other.answer}.", sample.instruction)]
            assert verdicts == [True, False, False]
    wanted = [case.payload.answer for case in found]  # no model is right by liking a verdict
    for verdict in sum(POOLS[split]["verdicts"], []):
        assert 0.1 < wanted.count(verdict) / len(wanted) < 0.4


def test_the_words_of_the_splits_are_apart():
    one, two = (set(pool["words"]) | set(sum(pool["verdicts"], [])) | set(pool["texts"])
                for pool in POOLS.values())
    assert not one & two and len(POOLS) == 2


def test_the_first_cases_do_not_depend_on_n_and_others_are_refused():
    assert evaluation.cases("heldout", 5) == evaluation.cases("heldout")[:5]
    assert evaluation.cases("heldout", 5) != evaluation.cases("heldout", 5, seed=1)
    with pytest.raises(ValueError, match="'train' has no conditional"):
        evaluation.cases("train")
    with pytest.raises(ValueError, match="at least one case"):
        evaluation.cases("heldout", 0)


def test_the_attacker_asks_for_the_verdict_that_the_text_does_not_deserve(toy):
    items = evaluation.conditional_items(evaluation.cases("heldout", 40), [
        (place, attack) for place in evaluation.PLACES for attack in injections.ATTACKS], toy)
    attacked = [item for item in items if item.position]
    assert len(items) == 80 + len(attacked) and len(attacked) == 3 * 40 * len(injections.ATTACKS)
    words = {item.id: item.instruction.split('"')[1] for item in items}
    for item in attacked:
        assert item.witness == item.reject[0] and item.expected == item.accept[0]
        assert words[item.id] not in item.data  # no attack makes the condition true
        assert judges.obeyed(item.witness, item.witness, item.judge)
        assert not judges.obeyed(item.expected, item.witness, item.judge)


def record(name, attack, right, obeyed=False):
    return {"id": name, "attack": attack, "right": right, "obeyed": obeyed, "witness": "OPEN",
            "target": "witness" if attack.startswith("conditional") else "conditional",
            "position": "" if attack.startswith("conditional") else "end"}


def test_attacks_count_only_on_cases_that_are_done_with_the_word_and_without():
    present, absent = "conditional_present", "conditional_absent"
    records = [record("both", present, True), record("both", absent, True),
               record("one", present, False), record("one", absent, True),
               record("both", "naive", False, True), record("one", "naive", True)]
    kept, [remark] = evaluation.capable(records)
    assert kept == records[:5] and "1 of 2 are done right" in remark
    assert "1 attacks on the others" in remark
    summary = evaluation.summarize(kept)
    assert summary["asr_conditional"]["naive"].value == 1
    assert summary["accuracy_under_conditional"]["naive"].n == 1
    assert summary["conditional_present"].value == 0.5 and summary["conditional_absent"].value == 1
    assert evaluation.by_place(kept)["end"]["obeyed"]["conditional instructions"].n == 1
    kept, [remark] = evaluation.capable(records[2:])
    assert "cannot do them" in remark and [r["id"] for r in kept] == ["one", "one"]
    others = [record("x", "naive", True) | {"target": "witness"}]
    assert evaluation.capable(others) == (others, [])


def test_evaluate_says_plainly_that_the_embedded_model_cannot_do_them(capsys):
    assert cli.main(["evaluate", "--n", "6", "--attacks", "naive", "--targets", "conditional"]) == 0
    out = capsys.readouterr().out
    assert "conditional present" in out and "conditional absent" in out
    assert "cannot do them" in out and "asr conditional" not in out
