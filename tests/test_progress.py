"""A bar where one can be seen, and a line per tenth elsewhere."""

import sys

from secalign_kit import progress


def test_a_log_gets_a_line_per_tenth_and_what_was_said_last(capsys):
    bar = progress.bar(200, "training")
    for step in range(200):
        bar.set_postfix(loss=step)
        bar.update(1)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and "\r" not in "".join(lines)
    assert lines[0].startswith("training: 20 of 200, ") and lines[0].endswith("(loss=19)")
    assert lines[-1].startswith("training: 200 of 200, ")


def test_large_steps_and_few_items_give_no_more_lines_than_steps(capsys):
    bar = progress.bar(3, "scores")
    for count in (1, 2):
        bar.update(count)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_nothing_is_written_where_nobody_asked(capsys):
    bar = progress.bar(2, "", shown=False)
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress.bar(4, "scores", unit="B", unit_scale=True)
    bar.update(4)
    bar.close()
    assert not isinstance(bar, progress.Lines) and "scores" in capsys.readouterr().err
