"""Frames drawn at random, and the kinds of frames that are kept for tests."""

import json
import random
import re
from collections import Counter

import pytest

from secalign_kit import frames, injections, pairs
from secalign_kit.injections import AttackContext
from secalign_kit.samples import DATA, DINOSAUR_HOST, DINOSAUR_PAYLOAD, Sample, shipped_samples

UNSEEN = json.loads((DATA / "unseen_frames.json").read_text(encoding="utf-8"))
WORD = re.compile(r"[^\W\d_]{3,}")


@pytest.fixture(scope="module")
def train():
    return shipped_samples("train")


@pytest.fixture(scope="module")
def maker(train):
    return frames.from_samples(train)


def context(seed) -> AttackContext:
    return AttackContext(random.Random(seed), "train", DINOSAUR_HOST, DINOSAUR_PAYLOAD)


def drawable_words(maker) -> set[str]:
    """Every word that a frame can hold, made-up ones aside, in lower case."""
    phrases = [phrase for kind in ("ignore", "fake_answers")
               for phrase in injections.PHRASES[kind]["train"]]
    return {word.lower() for text in (*maker.words, *frames.SENTENCES, *phrases)
            for word in WORD.findall(text)}


def test_a_seed_gives_the_same_frame_and_another_seed_another(maker):
    assert maker.draw(context(1)) == maker.draw(context(1))
    assert len({maker.draw(context(seed)) for seed in range(200)}) > 180


def test_the_payload_stands_in_its_frame_as_it_was(maker):
    for seed in range(300):
        left, right = maker.draw(context(seed))
        assert maker("Do dinosaurs exist?", context(seed)) == f"{left}Do dinosaurs exist?{right}"
        assert not left or not left[-1].isalnum()  # no word grows together with the payload


def test_some_frames_are_without_any_mark_and_some_stand_on_both_sides(maker):
    drawn = [maker.draw(context(seed)) for seed in range(500)]
    assert any(not left and not right for left, right in drawn)
    assert any(left and right for left, right in drawn)
    assert any(right and not left for left, right in drawn)


def test_a_made_up_word_begins_with_a_doubled_letter():
    rng = random.Random(0)
    words = [frames.made_up(rng) for _ in range(500)]
    assert all(word[0] == word[1] and len(word) > 2 for word in words)
    assert len({word[0] for word in words}) > 30


@pytest.mark.parametrize("split", UNSEEN)
def test_no_kind_of_the_tests_can_be_drawn(maker, split):
    known = drawable_words(maker)

    def foreign(template: str) -> bool:
        words = [w.lower() for w in WORD.findall(template.replace("{payload}", " "))]
        return any(word not in known and word[0] != word[1] for word in words)

    drawable = [text for group in UNSEEN[split].values() for text in group if not foreign(text)]
    assert not drawable, "a random frame could be one of these"


def test_validation_and_heldout_kinds_are_different_kinds():
    validation, heldout = (UNSEEN[split] for split in ("validation", "heldout"))
    assert not set(validation) & set(heldout)
    texts = [text for kinds in UNSEEN.values() for group in kinds.values() for text in group]
    assert len(set(texts)) == len(texts)
    assert all(text.count("{payload}") == 1 for text in texts)


def test_an_unseen_attack_draws_each_of_its_templates_and_none_is_there_for_training():
    attack = injections.unseen_attacks("heldout")["unseen_mail"]
    drawn = {attack("X", context(seed)) for seed in range(100)}
    assert drawn == {text.replace("{payload}", "X") for text in UNSEEN["heldout"]["mail"]}
    with pytest.raises(ValueError, match="'train' has no unseen frames"):
        injections.unseen_attacks("train")


def test_no_phrase_or_witness_of_the_tests_is_in_a_frame(maker):
    drawn = " ".join(maker("", context(seed)) for seed in range(2000)).lower()
    for kind in ("ignore", "fake_answers"):
        for split in ("validation", "heldout"):
            for phrase in injections.PHRASES[kind][split]:
                assert phrase.lower() not in drawn
    for witness in (*injections.WITNESS.values(), *injections.OTHER_WITNESSES):
        assert witness.answer.strip("!").lower() not in drawn


def test_pairs_hold_the_three_kinds_of_injection_in_their_shares(train):
    made = pairs.make_pairs(train, seed=0, n=2000, naive=0.5, frames=0.4, position="everywhere")
    counts = Counter(pair["attack"] for pair in made)
    assert set(counts) == {"naive", "frame", "completion"}
    assert abs(counts["naive"] / 2000 - 0.5) < 0.04
    assert abs(counts["frame"] / 2000 - 0.4) < 0.04


def test_everywhere_is_start_middle_and_end_alike(train):
    made = pairs.make_pairs(train, seed=0, n=2000, naive=1.0, position="everywhere")
    counts = Counter(pair["position"] for pair in made)
    # a quarter each for start and end, the rest inside; data of one word have no inside
    assert 0.2 < counts["start"] / 2000 < 0.3
    assert 0.35 < counts["inside"] / 2000 < 0.52
    inside = [p for p in made if p["position"] == "inside"]
    for pair in inside[:200]:
        data = pair["prompt"][1]["content"]
        assert 0 < pair["injection_start"] < pair["injection_end"] < len(data)


def test_without_frames_the_pairs_are_those_of_algorithm_1(train):
    old = pairs.make_pairs(train, seed=0, n=50)
    assert old == pairs.make_pairs(train, seed=0, n=50, frames=0.0)
    assert {pair["attack"] for pair in old} == {"naive", "completion"}


def test_any_samples_give_their_own_words():
    maker = frames.from_samples([Sample("Zähle die Wörter.", "Hund, Katze", "2")])
    assert maker.words == ("die", "hund", "katze", "wörter", "zähle")
    assert frames.from_samples([]).draw(context(3))  # made-up words and sentences are left
