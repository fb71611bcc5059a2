"""Rows of the files that people have: JSON, JSON lines, CSV, TSV and Parquet, gzipped or not.

One datum: `("mine.csv row 3", {"instruction": "Count the words.", "input": "red owl"})`, rows
counted from 0.

What a file is, its content decides where that is certain, and otherwise its name: exports of the
Hub are JSON lines whatever their suffix. Limits: a file is read whole, so large ones are refused.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 100 * 2**20  # of text; some ten times as much memory while it is read
Rows = Iterator[tuple[str, object]]


def rows(path: Path) -> Rows:
    """Yields where a row stands, in words, and the row: usually a dict.

    Raises ValueError for what is no such file: another format, broken text, another encoding than
    UTF-8 (or UTF-16 with its mark), a file above `MAX_BYTES`, or one without a row.
    """
    content = _content(path)
    found = list(_parquet(path, content) if content[:4] == b"PAR1" else
                 _text_rows(path, _decoded(path, content)))
    if not found:
        raise ValueError(f"{path} holds no row; give a file with at least one.")
    yield from found


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a JSON, JSON lines, CSV or Parquet file.")
    _refuse_large(path, path.stat().st_size)
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a broken gzip file ({error}); fetch it again.") from error
    _refuse_large(path, len(content))
    return content


def _refuse_large(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{path} holds more than {MAX_BYTES // 2**20} MiB; give a part of it, "
                         "such as its first 10,000 rows.")


def _decoded(path: Path, content: bytes) -> str:
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-{'16' if marked else '8'} at byte {error.start}; save "
                         "it as UTF-8.") from error


def _text_rows(path: Path, text: str) -> Rows:
    if "\x00" in text[:1000]:
        raise ValueError(f"{path} is no text; give a JSON, JSON lines, CSV or Parquet file.")
    kinds = [suffix.lower() for suffix in path.suffixes[-2:]]  # rows.csv.gz has two
    if ".csv" in kinds or ".tsv" in kinds:
        return _csv(path, text, "\t" if ".tsv" in kinds else None)
    start = text.lstrip()[:1]
    if start == "[" and not _is_row(text):
        return _listed(path, _parse(text, str(path)))
    if start == "{" or not start or {".json", ".jsonl", ".ndjson"} & set(kinds):
        return _json_lines(path, text)
    raise ValueError(f"{path} is not recognized; save it as JSON, JSON lines, CSV (.csv) or "
                     "Parquet.")


def _is_row(text: str) -> bool:
    """Whether the first line is a whole JSON value and others follow."""
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest.strip()) and json.loads(first) is not None
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path, text: str) -> Rows:
    if not _is_row(text) and text.strip():
        whole = _whole(text)
        if isinstance(whole, dict):
            yield from _contained(path, whole)
            return
    # split("\n") and not splitlines(): JSON may hold other line separators inside a string
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            yield f"{path} row {number}", _parse(line, f"{path} row {number}")


def _whole(text: str):
    """The text as one JSON value, which may take several lines, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _contained(path: Path, value: dict) -> Rows:
    """The rows in an object such as `{"version": 1, "data": [...]}`, or the object as a row."""
    lists = [key for key, inner in value.items()
             if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner)]
    if not lists or {"messages", "conversations"} & set(lists):
        return iter([(f"{path} row 0", value)])
    if len(lists) > 1:
        raise ValueError(f"{path} holds several lists of rows, {', '.join(map(repr, lists))}; save "
                         "the one that you mean as a file of its own.")
    return _listed(path, value[lists[0]])


def _listed(path: Path, found: list) -> Rows:
    return ((f"{path} row {number}", row) for number, row in enumerate(found))


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        raise ValueError(f"{where} is not valid JSON ({error}); repair or remove it.") from error
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; repair or remove it.") from None


def _csv(path: Path, text: str, delimiter: str | None) -> Rows:
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), strict=True,
                        delimiter=delimiter or max(",;\t", key=head.count))
    try:
        names = next(reader, [])
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path} names the column {twice[0]!r} twice; rename one.")
        for number, values in enumerate(row for row in reader if row):
            where = f"{path} row {number}"
            if len(values) != len(names):
                raise ValueError(f"{where} has {len(values)} fields and the first line names "
                                 f"{len(names)}; repair or remove it.")
            yield where, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not valid CSV ({error}); repair or "
                         "remove it.") from error


def _parquet(path: Path, content: bytes) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is a broken Parquet file ({str(error).splitlines()[0]}); fetch "
                         "it again.") from error
    return _listed(path, table.to_pylist())
