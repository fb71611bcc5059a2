"""Nothing in a text stays hidden, nothing in it becomes HTML, and numbers have true signs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secalign_kit.visible import arrow, escape_hostile, number, one_line, visible


@pytest.mark.parametrize("text, shown", [
    ("a b\u00e9", "a b\u00e9"),
    ("a\nb\t", "a\u21b5b\u21e5"),
    ("\x00\x7f\x85", "[U+0000][U+007F][U+0085]"),
    ("\u202e\u2066\u200b\ufeff\u00ad", "[U+202E][U+2066][U+200B][U+FEFF][U+00AD]"),
    ("\u00a0\u2028\ufe0f\U000e0041", "[U+00A0][U+2028][U+FE0F][U+E0041]"),
    ("\ud800\u3164", "[U+D800][U+3164]"),
])
def test_one_line_hides_nothing(text, shown):
    assert one_line(text) == shown
    assert one_line(shown) == shown


def test_visible_text_keeps_letters_and_line_breaks():
    assert visible("né\n\u200bx\t") == "né\n[U+200B]x\u21e5"


@given(st.text())
def test_hostile_text_shows_its_invisible_characters_and_cannot_open_a_tag(text):
    escaped = escape_hostile(text + "\u202e<b>\x00'\"")
    assert not set(escaped) & set("<>'\"\u202e\x00")


def test_numbers_have_a_true_minus_and_no_minus_before_zero():
    assert [number(x) for x in (-1.234, -0.001, 2)] == ["\u22121.23", "0.00", "2.00"]
    assert number(2, 1, "+") == "+2.0"
    assert [arrow(x) for x in (-1, 1, -0.001)] == ["\u25bc\u22121.00", "\u25b2+1.00", "+0.00"]
