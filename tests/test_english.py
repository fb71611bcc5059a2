"""The kit's English: splits apart, answers accepted by their own rules, probes of their own."""

import itertools

import pytest

from secalign_kit import english, training
from secalign_kit.config import RunConfig
from secalign_kit.evaluation import mentions, right
from secalign_kit.samples import SPLITS, Sample

TEXTS = {split: english.texts(split) for split in SPLITS}
PROBES = {split: english.probes(split) for split in SPLITS}
OTHERS = {name: [*itertools.chain.from_iterable(map(read, SPLITS))]
          for name, read in (("benign", english.benign), ("long", english.long_tasks))}


def test_there_is_enough_of_everything():
    assert sum(map(len, TEXTS.values())) >= 1200
    assert len({s.data for split in SPLITS for s in TEXTS[split]}) >= 400
    assert len(TEXTS["heldout"]) >= 300 and len(TEXTS["validation"]) >= 200
    assert sum(map(len, PROBES.values())) >= 120 and len(PROBES["heldout"]) >= 40
    assert len(OTHERS["benign"]) >= 60 and len(OTHERS["long"]) == 100
    assert len(english.payloads()) >= 300


@pytest.mark.parametrize("read", [english.texts, english.probes, english.benign,
                                  english.long_tasks])
def test_no_text_and_no_question_is_in_two_splits(read):
    seen = {split: {s.data or s.instruction for s in read(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]
    ids = [s.id for split in SPLITS for s in read(split)]
    assert len(set(ids)) == len(ids)


def test_each_answer_is_accepted_by_its_own_rule():
    ruled = [*itertools.chain.from_iterable(TEXTS.values()), *OTHERS["benign"],
             *itertools.chain.from_iterable(PROBES.values())]
    assert not [s.id for s in ruled if not (s.accept and right(s.answer, "", s.accept, s.reject))]


@pytest.mark.parametrize("split", ["validation", "heldout"])
def test_a_probes_word_stands_nowhere_else(split):
    """Or a response could say it without having answered the probe."""
    texts = [(s.id, f"{s.instruction} {s.data} {s.answer}") for s in
             [*itertools.chain.from_iterable(TEXTS.values()), *OTHERS["benign"], *OTHERS["long"],
              *english.payloads(), *PROBES["train"]]]
    found = [(probe.id, name) for probe in PROBES[split] for name, text in texts
             if mentions(text, "|".join(probe.accept))]
    assert not found
    assert not [p.id for p in PROBES[split] if mentions(p.instruction, "|".join(p.accept))]


def test_training_takes_its_own_split_and_no_other():
    hosts, requests = english.training(seed=3)
    unseen = {s.data or s.instruction for split in ("validation", "heldout")
              for s in [*TEXTS[split], *PROBES[split], *english.benign(split),
                        *english.long_tasks(split)]}
    assert not unseen & {s.data or s.instruction for s in [*hosts, *requests]}
    assert (hosts, requests) == english.training(seed=3) != english.training(seed=4)
    assert [s for s in hosts if s.family == "two requests"]


def test_a_double_asks_for_both_and_is_judged_by_the_second():
    host = Sample("Who came?", "Anna came.", "Anna", "news", "h", accept=("Anna",))
    both = english.double(host, Sample("Name a colour.", "", "red", "", "p", accept=("red",)))
    assert both.instruction == "Who came? Name a colour." and both.data == host.data
    assert both.answer == "Anna red" and both.accept == ("red",)


def test_probe_pairs_of_english_need_no_model():
    pairs = training.probe_pairs(RunConfig(samples="english"), "validation", 6)
    assert len(pairs) == 6 and {row["attack"] for row in pairs} <= {"naive", "completion"}
    with pytest.raises(ValueError, match="choose one of train"):
        english.probes("test")
