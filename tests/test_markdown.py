"""Tables and cards keep their form, whatever stands in them."""

from hostile import HOSTILE, harmless

from secalign_kit.evaluation import Rate
from secalign_kit.markdown import Table, card, table


def test_no_cell_breaks_out_of_its_table():
    assert table(("", "n"), [("a|b\nc", 1), ("", 0)]).split("\n") == [
        "| | n |", "|---|---|", "| a&#124;b c | 1 |", "| | 0 |"]


def test_a_card_has_tags_first_and_space_between_its_blocks():
    assert card("Title", "One\n", "", "- two", tags=("dpo",)) == (
        "---\ntags:\n- dpo\n---\n\n# Title\n\nOne\n\n- two\n")
    assert card("Title", "One") == "# Title\n\nOne\n"


def test_a_table_of_a_notebook_is_cut_rounded_left_aligned_and_harmless():
    rate = Rate(0.5, 40, 0.3, 0.7)
    shown = Table([{"who": "<b>", "x": 0.1234567890123456, "rate": rate, "text": "ab" * 50},
                   {"who": "\u202e", "x": -2.0, "rate": rate, "text": "\n"}], limit=20)
    head, first, second = repr(shown).splitlines()
    assert head.split() == ["who", "x", "rate", "text"]
    assert "0.12" in first and "0.1234" not in first and "\u2212" "2.00" in second
    assert first.endswith("ab" * 9 + "a\u2026") and second.startswith("[U+202E]")
    page = shown._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;" in page and page.count("<tr>") == 3
    assert page.count("text-align:left") == 12
    assert f'white-space:nowrap">{rate}</td>' in page  # an interval stays on its line
    assert harmless(Table([{text: text} for text in HOSTILE[:1] * 2], 99)._repr_html_())
    assert harmless(Table([{"who": text} for text in HOSTILE], 99)._repr_html_())
