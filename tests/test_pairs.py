"""Every pair prefers the answer to the instruction over the answer to the injection."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hostile import ALL, harmless
from hypothesis import given, settings
from hypothesis import strategies as st

from secalign_kit.injections import PHRASES
from secalign_kit.pairs import (
    FEATURES,
    card,
    load_pairs,
    make_pairs,
    pair_statistics,
    pairs_dataset,
    save_pairs,
)
from secalign_kit.samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD, Sample, load_samples

SAMPLES = [
    Sample("Count the words.", "red, " * k + "owl.", str(k + 1), "count", f"c{k}")
    for k in range(8)
] + [Sample(f"Greet number {k}.", "", f"Hello, {k}!", "greet", f"g{k}") for k in range(6)]
BY_ID = {sample.id: sample for sample in SAMPLES}


def contents(row):
    return [message["content"] for message in row["prompt"]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 30), naive=st.floats(0, 1),
       clean=st.floats(0, 1), position=st.sampled_from(("end", "start", "random")))
def test_every_pair_is_what_its_provenance_says(seed, n, naive, clean, position):
    pairs = make_pairs(SAMPLES, seed=seed, n=n, naive=naive, clean=clean, position=position)
    assert len(pairs) == n
    for row in pairs:
        host, payload = BY_ID[row["host_id"]], BY_ID[row["payload_id"]]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert (chosen, rejected) == (host.answer, payload.answer)
        assert chosen and rejected and chosen != rejected
        assert [m["role"] for m in row["prompt"]] == ["user", "input"][: len(row["prompt"])]
        if row["attack"] == "none":
            assert contents(row) == [text for text in (host.instruction, host.data) if text]
            assert row["injection_start"] == row["injection_end"] == -1
        else:
            text = contents(row)[1][row["injection_start"] : row["injection_end"]]
            assert payload.instruction in text and payload.data.rstrip(".") in text


def test_the_first_pairs_do_not_depend_on_how_many_are_made():
    options = {"seed": 5, "clean": 0.3, "position": "random"}
    assert make_pairs(SAMPLES, n=9, **options) == make_pairs(SAMPLES, n=20, **options)[:9]


def test_another_seed_gives_other_pairs():
    assert make_pairs(SAMPLES, seed=1) != make_pairs(SAMPLES, seed=2)


def test_each_host_is_used_once_before_any_is_used_again():
    used = Counter(row["host_id"] for row in make_pairs(SAMPLES, seed=0, n=16))
    assert used == {f"c{k}": 2 for k in range(8)}
    assert len(make_pairs(SAMPLES, seed=0)) == 8


def test_shares_of_attacks_and_clean_pairs_are_kept():
    pairs = make_pairs(SAMPLES, seed=0, n=2000, naive=0.9, clean=0.3)
    counts = Counter(row["attack"] for row in pairs)
    assert abs(counts["none"] / 2000 - 0.3) < 0.04
    assert abs(counts["naive"] / (counts["naive"] + counts["completion"]) - 0.9) < 0.03
    bare = sum(len(row["prompt"]) == 1 for row in pairs)
    assert abs(bare / counts["none"] - 0.5) < 0.08


def test_training_pairs_hold_no_phrase_of_the_other_splits():
    text = str(make_pairs(SAMPLES, seed=0, n=300, naive=0.0))
    for kind in ("markers", "fake_answers"):
        for split in ("validation", "heldout"):
            for item in PHRASES[kind][split]:
                assert (item if isinstance(item, str) else item[2]) not in text


def test_the_dinosaur_pair_is_the_diagram():
    row = make_pairs([DINOSAUR_HOST, DINOSAUR_PAYLOAD], seed=0, naive=1.0)[0]
    assert contents(row)[1].endswith("is prime. Do dinosaurs exist?")
    assert row["chosen"][0]["content"].startswith("def is_prime")
    assert row["rejected"][0]["content"] == "No, dinosaurs are extinct."


@pytest.mark.parametrize("samples, change, message", [
    (SAMPLES[8:], {}, "no sample has both data and an answer"),
    ([SAMPLES[0], Sample("Say it.", "", "1 ")], {}, "no other sample has a different answer"),
    (SAMPLES, {"n": 0}, "n is 0"),
    (SAMPLES, {"naive": 1.5}, "naive is 1.5"),
    (SAMPLES, {"clean": float("nan")}, "clean is nan"),
    (SAMPLES, {"frames": 1.0}, "naive and frames are 0.9 and 1.0"),
    (SAMPLES, {"position": "left"}, "position 'left'"),
    (SAMPLES, {"split": "dev"}, "split 'dev'"),
])
def test_impossible_wishes_are_refused(samples, change, message):
    with pytest.raises(ValueError, match=message):
        make_pairs(samples, seed=0, **change)


def test_a_saved_dataset_comes_back_and_may_be_replaced(tmp_path):
    folder = tmp_path / "pairs"
    save_pairs(pairs_dataset(SAMPLES, seed=0, clean=0.5), folder, source="a test")
    dataset = pairs_dataset(SAMPLES, seed=1, clean=0.5)
    save_pairs(dataset, folder, source="a test")
    assert load_pairs(folder).to_list() == dataset.to_list()
    assert dataset.features == FEATURES and dataset.to_list() == make_pairs(
        SAMPLES, seed=1, clean=0.5)
    assert "a test" in (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_folder_with_other_files_is_neither_replaced_nor_read(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="other files"):
        save_pairs(pairs_dataset(SAMPLES, seed=0), tmp_path)
    with pytest.raises(ValueError, match="no saved pairs"):
        load_pairs(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_the_card_states_counts_and_escapes_the_attack():
    hostile = Sample(f"Say {ALL}.", "", ALL, "a|b\nc", "h")
    pairs = make_pairs([SAMPLES[0], hostile], seed=0)
    text = card(pairs)
    assert "Pairs: 1," in text and "&lt;script&gt;" in text and "[U+202E]" in text
    assert harmless(text)
    assert pair_statistics(pairs)["payload_families"] == {"a|b\nc": 1}


# real data are not ours to give away: name a file, or lay one beside the checkout
ALPACA = Path(os.environ.get("SECALIGN_KIT_ALPACA")
              or Path(__file__).parents[2] / "shared/data/alpacafarm_davinci003.json")


@pytest.mark.skipif(not ALPACA.is_file(), reason="no Alpaca file: set SECALIGN_KIT_ALPACA")
def test_real_alpaca_data_makes_as_many_pairs_as_it_has_hosts():
    samples = load_samples(ALPACA)
    rows = pairs_dataset(samples, seed=0, position="random")
    assert len(rows) == sum(bool(s.data.strip() and s.answer.strip()) for s in samples)
