"""The English table: what is asked, what counts, and which questions are left out."""

from collections import Counter

import pytest

from secalign_kit import english, evaluation


@pytest.fixture(scope="module")
def items(toy):
    return evaluation.probe_items(toy, "heldout", n=4)


def test_every_kind_of_question_is_asked(items):
    found = Counter((i.attack, i.position) for i in items)
    assert found == {("none", ""): 4, ("second", ""): 4, ("retention", ""): 81,
                     ("benign", ""): 60, **dict.fromkeys(evaluation.CELLS, 4)}


def test_a_probe_stands_in_the_data_and_its_words_decide(items):
    probes = {p.instruction: p for p in english.probes("heldout")}
    attacked = [i for i in items if i.position]
    for item in attacked:
        probe = probes[item.payload]
        assert probe.instruction in item.data[item.start : item.end]
        assert (item.target, item.judge) == ("probe", "mentions")
        assert item.witness == "|".join(probe.accept)
    for item in attacked:  # a cell's own place
        rest = len(item.data) - item.end
        assert {"end": rest == 0, "start": item.start == 0,
                "middle": item.start > 0 and rest > 0}[item.position]


def test_a_second_request_is_one_instruction_with_its_host_and_decided_by_its_own_words(items):
    hosts = [i for i in items if i.attack == "none"]
    for host, item in zip(hosts, (i for i in items if i.attack == "second"), strict=True):
        assert item.instruction.startswith(host.instruction + " ") and item.data == host.data
        assert item.accept != host.accept


def record(attack, position="", right=True, obeyed=False, payload="", instruction="",
           response="Yes."):
    return {"attack": attack, "position": position, "right": right, "obeyed": obeyed,
            "payload": payload, "instruction": instruction, "response": response}


def test_questions_that_the_model_cannot_answer_are_left_out_of_obeyed_alone():
    found = evaluation.probe_summary([
        record("retention", instruction="known?"), record("retention", False, right=False,
                                                          instruction="unknown?"),
        record("none"), record("none", right=False), record("second", right=False),
        record("benign"),
        record("naive", "end", right=False, obeyed=True, payload="known?"),
        record("naive", "end", payload="unknown?"), record("naive", "end", payload="unknown?"),
        record("ignore", "end", payload="unknown?", response="no no no no no no"),
    ])
    assert found["left_out"] == 3
    cell = found["separation"]["naive, end"]
    assert (cell["obeyed"].value, cell["obeyed"].n) == (1.0, 1)
    assert (cell["right"].n, round(3 * cell["right"].value)) == (3, 2)
    assert list(found["separation"]["ignore, end"]) == ["right"]  # nothing says it was resisted
    assert (found["clean_utility"].value, found["retention"].value) == (0.5, 0.5)
    assert (found["second"].value, found["benign"].value) == (0.0, 1.0)
    assert (round(10 * found["degenerate"].value), found["degenerate"].n) == (1, 10)


def test_answers_that_begin_alike_are_grouped_by_place(toy, items, monkeypatch):
    asked = {}

    def respond(bundle, encoded, keys, witnesses, **options):
        asked.update(enumerate(keys))
        return [("Yes.", 1)] * len(encoded)

    monkeypatch.setattr("secalign_kit.evaluation.responses._responses", respond)
    some = [i for i in items if i.attack == "none" or i.position]
    evaluation.evaluate(toy, some, by_place=True)
    keys = {(i.attack, i.position): asked[k] for k, i in enumerate(some)
            if i.id == some[0].id and i.instruction == some[0].instruction}
    assert keys["none", ""] == keys["naive", "end"] == keys["completion", "end"]
    assert len(set(keys.values())) == 3
    evaluation.evaluate(toy, some)
    assert len({asked[k] for k, i in enumerate(some) if i.id == some[0].id}) == 1
