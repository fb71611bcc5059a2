"""Clean samples: an instruction, the data it works on, and the right answer.

One datum: `Sample("Please generate a python function for the provided task.", "Determine whether a
number is prime.", "def is_prime(x): ...", "python")`

Limits: text only, one turn, one answer per sample. Nothing here judges whether an answer is right;
an Alpaca file is as good as whoever wrote it.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from . import files

SPLITS = ("train", "validation", "heldout")

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the data inside the package; a checkout has it beside the package.
DATA = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent / "data"


@dataclass(frozen=True)
class Sample:
    """One task. `data` is empty if the instruction needs none; `family` and `id` are provenance.

    With `accept`, an answer is right that has one of these words or phrases and none of `reject`
    (`evaluation.right`); without, it is right if it is `answer`. `cut` says that the answer would
    go on: it is a model's own, stopped at a limit, and no pair teaches to end there.
    """

    instruction: str
    data: str = ""
    answer: str = ""
    family: str = ""
    id: str = ""
    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    cut: bool = False

    @property
    def request(self) -> str:
        """Instruction and data as one text: the form that a payload takes inside other data."""
        return f"{self.instruction} {self.data}".strip()


DINOSAUR_HOST = Sample(
    "Please generate a python function for the provided task.",
    "Determine whether a number is prime.",
    "def is_prime(x): return x > 1 and all(x % d for d in range(2, x))",
    "python",
    "dinosaur-host",
)
DINOSAUR_PAYLOAD = Sample(
    "Do dinosaurs exist?", "", "No, dinosaurs are extinct.", "fact", "dinosaur-payload"
)

_RULES = ("accept", "reject")
_NAMES = tuple(field.name for field in fields(Sample) if field.type is str)
_ALPACA = {"instruction": "instruction", "data": "input", "answer": "output"}
_DOLLY = {"instruction": "instruction", "data": "context", "answer": "response"}
_CHATS = {"messages": ("role", "content"), "conversations": ("from", "value")}  # ShareGPT's last
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "answer",
          "gpt": "answer"}
_TRUE, _FALSE = ("true", "1"), ("false", "0", "", "none")
NO_DATA = ("", "<noinput>", "nan", "none", "null", "n/a")
"""What files write for "this instruction has no data", in any case."""


def load_samples(path: str | os.PathLike, columns: Mapping[str, str] | None = None
                 ) -> list[Sample]:
    """Samples of a JSON, JSON lines, CSV or Parquet file (`files.rows`), gzipped or not.

    `columns` says which column is our field, as `{"instruction": "question", "data": "passage",
    "answer": "gold"}`. Without it the layout is recognized: ours (instruction, data, answer,
    family, id, and lists of words accept and reject), Alpaca's (instruction, input, output),
    Dolly's (instruction, context, response), chats of one turn (`messages`, or ShareGPT's
    `conversations`): the system turn is the instruction and the user's the data, or the user's the
    instruction where it is alone. Other layouts than ours may have further columns, and lose
    whitespace around texts, because model-written answers often begin with blank lines. A sample
    without an id gets `<file's name>-<row number from 0>`.

    Data such as `NO_DATA`, in other layouts than ours, are taken as none, with a warning that
    counts them. Raises ValueError that names file, row and field if a row cannot be read.
    """
    path, rows = Path(path), list(files.rows(Path(path)))
    if columns is not None:
        _refuse_columns(columns, [row for _, row in rows if isinstance(row, dict)], path)
    found = [_sample(row, where, columns) for where, row in rows]
    if none := [said for _, said in found if said]:
        warnings.warn(f"{path}: {len(none)} of {len(found)} rows have {none[0]!r} or the like as "
                      "data; they are taken as rows without data", stacklevel=2)
    stem = path.name.partition(".")[0]
    return [replace(sample, id=sample.id or f"{stem}-{number:05d}")
            for number, (sample, _) in enumerate(found)]


def save_samples(samples: Iterable[Sample], path: str | os.PathLike) -> None:
    """Writes one JSON object a line; `load_samples` gives the same samples back."""
    lines = (as_json(as_row(sample)) + "\n" for sample in samples)
    write_text(path, "".join(lines))


def as_row(item) -> dict:
    """A sample, or an item of an evaluation, as a dictionary; without the rule if it has none."""
    return {name: value for name, value in asdict(item).items()
            if value or name not in (*_RULES, "cut")}


def shipped_samples(split: str) -> list[Sample]:
    """The samples that come with the kit: split is train, validation or heldout.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    return load_samples(DATA / "samples" / f"{split}.jsonl")


def fingerprint(text: str) -> str:
    """24 hexadecimal digits that tell a text from others: the keys of records that are kept."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def as_json(value, **options) -> str:
    """The value as JSON text; `options` are those of `json.dumps`.

    Raises ValueError for NaN and infinity, which JSON does not have and other programs refuse.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError as error:
        raise ValueError(f"a result is no number and is not written ({error}); please report it "
                         "with the command that you gave") from error


def write_json(path: str | os.PathLike, value) -> None:
    """Writes a value as a JSON file, as `write_text` and `as_json` do."""
    write_text(path, as_json(value, indent=1) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # newline="" keeps what the text says, also on systems that would write \r\n
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(lock: str | os.PathLike, patience: float = 0.0):
    """Inside, no other process is at work on what the file `lock` stands for.

    The lock is the system's, so that a process which was killed has none any more. The file and
    the folders that were made for it go again, unless something else was written there. Raises
    ValueError if another process is still at work after `patience` seconds; -1 waits for its end.
    """
    lock = Path(lock)
    made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        raise ValueError(f"another process is at work in {str(lock.parent)!r}; wait until it has "
                         "ended, or choose another folder") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # gone, or (Windows) not before it is released
            lock.unlink()
        held.release()
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _sample(row, where: str, columns: Mapping[str, str] | None) -> tuple[Sample, str]:
    """A row's sample, and what the row says instead of data if it has none. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is of type {type(row).__name__}; a row must be a JSON object.")
    if columns:
        return _others(_fields(row, where, columns))
    for key, names in _CHATS.items():
        if key in row:
            return _others(_chat(row[key], where, key, *names))
    for layout in (_ALPACA, _DOLLY):
        if layout["answer"] in row and not {"data", "answer"} & row.keys():
            return _others(_fields(row, where, layout))
    known = (*_NAMES, *_RULES, "cut")
    if unknown := sorted(map(str, row.keys() - set(known))):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}; use {', '.join(known)}, "
                         "or name your columns: --columns instruction=...,data=...,answer=...")
    rules = {name: _words(row.get(name, []), where, name) for name in _RULES}
    return Sample(**_fields(row, where, {name: name for name in _NAMES}), **rules,
                  cut=_yes(row.get("cut"), where, "cut")), ""


def _refuse_columns(columns: Mapping[str, str], rows: list[dict], path: Path) -> None:
    if unknown := sorted(columns.keys() - _ALPACA.keys()):
        raise ValueError(f"columns name {unknown[0]!r}; name instruction, data or answer, as in "
                         "instruction=question,data=passage,answer=gold")
    if "instruction" not in columns:
        raise ValueError("columns name no instruction; write instruction=COLUMN too")
    there = dict.fromkeys(key for row in rows for key in row)
    for column in columns.values():
        if column not in there:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(there)}.")


def _others(values: dict[str, str]) -> tuple[Sample, str]:
    """A sample of somebody else's layout, where no data may be written as a word."""
    values = {name: text.strip() for name, text in values.items()}
    data = values.get("data", "")  # a user may name no column of data
    none = data if data.lower() in NO_DATA else ""
    return Sample(**values | ({"data": ""} if none else {})), none


def _fields(row: dict, where: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Our fields of a row; all but the instruction may be absent, and data may be null."""
    values = {}
    for name, column in columns.items():
        absent = column not in row or name == "data" and row[column] is None
        values[name] = ("" if absent and name != "instruction" else
                        _text(row.get(column), where, column))
    return _checked(values, where, columns["instruction"])


def _chat(turns, where: str, key: str, role: str, content: str) -> dict[str, str]:
    """A chat of one turn each of system (may be absent), user and assistant."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{where}, field {key!r} is no list of turns; write {role!r} and "
                         f"{content!r} for each.")
    said: dict[str, str] = {}
    for turn in turns:
        who = _ROLES.get(str(turn.get(role)))
        if who is None or who in said:
            second = "a second turn" if who else "a turn"
            raise ValueError(f"{where}, field {key!r} has {second} of {turn.get(role)!r}; a sample "
                             "is one system, one user and one assistant turn.")
        said[who] = _text(turn.get(content), where, f"{key}.{content}")
    user, answer = said.get("user", ""), said.get("answer", "")
    slots = (said["system"], user) if said.get("system", "").strip() else (user, "")
    return _checked(dict(zip(_ALPACA, (*slots, answer), strict=True)), where, key)


def _text(value, where: str, field: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"of type {type(value).__name__}"
        raise ValueError(f"{where}, field {field!r} is {kind}; write a string.")
    if any("\ud800" <= c <= "\udfff" for c in value):  # half of a pair: no file can hold it
        raise ValueError(f"{where}, field {field!r} holds a lone surrogate; remove the character.")
    return value


def _words(value, where: str, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{where}, field {field!r} is no list of words; write [\"four\", \"4\"].")
    return tuple(_text(word, where, field) for word in value)


def _yes(value, where: str, field: str) -> bool:
    """True or false; tables have them as text or as numbers, or nothing for false."""
    word = str(value).strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"{where}, field {field!r} is {value!r}; write true or false.")
    return word in _TRUE


def _checked(values: dict[str, str], where: str, field: str) -> dict[str, str]:
    if not values["instruction"].strip():
        raise ValueError(f"{where}, field {field!r} is empty; write an instruction.")
    return values
