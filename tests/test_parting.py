"""The README's two pictures show one recorded run, which is shipped."""

import json
from pathlib import Path

import pytest
from PIL import Image

from secalign_kit import figures
from secalign_kit.config import recipe
from secalign_kit.samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD
from secalign_kit.studies import parting
from secalign_kit.visible import number

ROOT = Path(__file__).resolve().parent.parent
FOUND = json.loads(parting.SHIPPED.read_text(encoding="utf-8"))


def test_a_run_is_recorded_with_the_diagrams_own_pair(tmp_path):
    config = recipe("demo").replace(n_pairs=32, batch_size=16, probe_every=1, output=str(tmp_path))
    found = parting.record(config)
    assert [row["step"] for row in found["log"]] == [0, 1, 2]
    assert found["log"][0] == pytest.approx(FOUND["log"][0], abs=0.1)  # the same base model
    assert found["log"][2] != {**found["log"][0], "step": 2}
    assert found["insecure_answer"] == FOUND["insecure_answer"] == DINOSAUR_PAYLOAD.answer


def test_both_pictures_are_drawn_from_the_record(tmp_path):
    short = FOUND | {"log": FOUND["log"][:3]}
    measured = parting.measured(short)
    assert measured["chosen_after"] == short["log"][2]["chosen_logprob"]
    assert measured["secure_answer"] == FOUND["secure_answer"] and "log" not in measured
    made = parting.draw(short, tmp_path)
    assert [Image.open(path).format for path in made] == ["PNG", "GIF"]
    assert Image.open(made[1]).n_frames == 3


def test_the_shipped_animation_is_small_short_and_complete():
    film = Image.open(ROOT / "docs" / "parting.gif")
    assert (ROOT / "docs" / "parting.gif").stat().st_size < 300_000
    assert film.n_frames == len(figures.parting(FOUND["log"])) and "loop" not in film.info
    shown = []
    for place in range(film.n_frames):
        film.seek(place)
        shown.append(film.info["duration"])
    assert sum(shown[1:]) <= 5000  # what moves longer than five seconds needs a way to stop it


def test_the_readme_says_what_the_pictures_show():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    first, last = FOUND["log"][0], FOUND["log"][-1]
    for role in ("chosen", "rejected"):
        moved = (number(row[f"{role}_logprob"], 1) for row in (first, last))
        assert "{} from {} to {}".format(role, *moved) in text
    assert FOUND["secure_answer"] == DINOSAUR_HOST.answer
