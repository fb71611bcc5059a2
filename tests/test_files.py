"""Rows of files as people have them, or one sentence that says why not."""

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from secalign_kit import files

ROWS = [{"instruction": "Sum.", "input": "1 2"}, {"instruction": "Greet.", "input": "caf\u00e9"}]
LINES = "\n".join(map(json.dumps, ROWS))
CSV = "instruction,input\nSum.,1 2\nGreet.,caf\u00e9\n"


def packed(text: str) -> bytes:
    """The same bytes in every process that collects tests: their names are made of them."""
    return gzip.compress(text.encode(), mtime=0)


def parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


@pytest.mark.parametrize("name, content", [
    ("rows.json", json.dumps(ROWS)),
    ("rows.json", json.dumps(ROWS, indent=2)),
    ("rows.json", LINES),  # what exports of the Hub are
    ("rows.jsonl", json.dumps(ROWS)),
    ("rows.jsonl", LINES.replace("\n", "\r\n\r\n")),
    ("rows.json", json.dumps({"version": "1", "data": ROWS})),
    ("rows.json", json.dumps({"splits": ["a"], "rows": ROWS}, indent=1)),
    ("rows.jsonl", LINES.encode("utf-8-sig")),
    ("rows.jsonl", LINES.encode("utf-16")),
    ("rows.csv", CSV),
    ("rows.csv", CSV.replace(",", ";")),
    ("rows.CSV", CSV.replace("\n", "\r\n").encode("utf-8-sig")),
    ("rows.tsv", CSV.replace(",", "\t")),
    ("rows.csv.gz", packed(CSV)),
    ("rows.jsonl.gz", packed(LINES)),
    ("rows.json", packed(LINES)),
    ("rows.parquet", parquet()),
    ("train-00000", parquet()),
])
def test_rows_are_read_from(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [row for _, row in files.rows(path)] == ROWS


def test_a_row_of_one_object_on_several_lines_is_a_row(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert list(files.rows(path)) == [(f"{path} row 0", ROWS[0])]


@pytest.mark.parametrize("name, content, why", [
    ("rows.json", b"", "holds no row"),
    ("rows.jsonl", b" \n\n", "holds no row"),
    ("rows.json", b"[]", "holds no row"),
    ("rows.csv", b"a,b\n", "holds no row"),
    ("rows.json", b'{"a": [{"x": 1}], "b": [{"x": 2}]}', "several lists of rows, 'a', 'b'"),
    ("rows.json", b'[{"a": 1}, {"a":', "not valid JSON"),
    ("rows.jsonl", b'{"a": 1}\n{"a":', "row 1 is not valid JSON"),
    ("rows.json", b"[" * 200_000, "nested too deeply|not valid JSON"),
    ("rows.json", b"[" * 200_000 + b"\n[", "nested too deeply|not valid JSON"),
    ("rows.json", b'{"a":' * 200_000, "nested too deeply|not valid JSON"),
    ("rows.json", b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ("rows.jsonl", b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ("rows.jsonl", b"\xff\xfea", "not UTF-16 at byte"),
    ("rows.csv", b"a,a\n1,2\n", "names the column 'a' twice"),
    ("rows.csv", b"a,b\n1,2\n1,2,3\n", "row 1 has 3 fields and the first line names 2"),
    ("rows.csv", b'a,b\n1,"2', "line 2 is not valid CSV"),
    ("rows.txt", b"Hello", "not recognized"),
    ("model.bin", b"\x80\x02\x00pickle", "not UTF-8|is no text"),
    ("rows.jsonl.gz", packed(LINES)[:-9], "broken gzip file"),
    ("rows.parquet", parquet()[:-9], "broken Parquet file"),
])
def test_what_is_no_file_of_rows_is_refused_with_the_place(tmp_path, name, content, why):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*({why})"):
        list(files.rows(path))


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        list(files.rows(tmp_path))
    with pytest.raises(ValueError, match="is not a file"):
        list(files.rows(tmp_path / "absent.json"))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    path = tmp_path / "large.jsonl"
    content = '{"instruction": "x"}\n' * 200
    path.write_bytes(packed(content) if zipped else content.encode())
    with pytest.raises(ValueError, match="large.jsonl holds more than"):
        list(files.rows(path))
