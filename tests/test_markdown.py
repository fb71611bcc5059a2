"""Tables and cards keep their form, whatever stands in them."""

from secalign_kit.markdown import card, table


def test_no_cell_breaks_out_of_its_table():
    assert table(("", "n"), [("a|b\nc", 1), ("", 0)]).split("\n") == [
        "| | n |", "|---|---|", "| a&#124;b c | 1 |", "| | 0 |"]


def test_a_card_has_tags_first_and_space_between_its_blocks():
    assert card("Title", "One\n", "", "- two", tags=("dpo",)) == (
        "---\ntags:\n- dpo\n---\n\n# Title\n\nOne\n\n- two\n")
    assert card("Title", "One") == "# Title\n\nOne\n"
