"""The command line says what was wrong in one sentence, and its help needs no torch."""

import json

import pytest

from secalign_kit import cli


@pytest.mark.parametrize("arguments", [
    ["train", "--config", "no-such-recipe"], ["train", "--set", "beta"],
    ["train", "--set", "betta=1"], ["pairs", "no-such-file.json", "out"],
    ["evaluate", "no-such-adapter", "--n", "2"],
])
def test_bad_input_ends_in_one_sentence(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("secalign-kit: ") and said.count("\n") == 0 and "Traceback" not in said


def test_pairs_are_made_from_an_alpaca_shaped_file(tmp_path, capsys):
    rows = [{"instruction": f"Say {n}.", "input": f"text {n}", "output": f"answer {n}"}
            for n in range(6)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    assert cli.main(["pairs", str(tmp_path / "alpaca.json"), str(tmp_path / "out")]) == 0
    assert "6 pairs" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").exists()


def test_evaluate_prints_rates_with_n_and_writes_records(tmp_path, capsys):
    records = tmp_path / "records.jsonl"
    assert cli.main(["evaluate", "secalign", "--n", "3", "--records", str(records)]) == 0
    out = capsys.readouterr().out
    assert "asr naive" in out and "(n=3)" in out
    assert len(records.read_text().splitlines()) > 15
