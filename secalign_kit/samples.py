"""Clean samples: an instruction, the data it works on, and the right answer.

One datum: `Sample("Please generate a python function for the provided task.", "Determine whether a
number is prime.", "def is_prime(x): ...", "python")`

Limits: text only, one turn, one answer per sample. Nothing here judges whether an answer is right;
an Alpaca file is as good as whoever wrote it.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

SPLITS = ("train", "validation", "heldout")

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the data inside the package; a checkout has it beside the package.
DATA = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent / "data"


@dataclass(frozen=True)
class Sample:
    """One task. `data` is empty if the instruction needs none; `family` and `id` are provenance."""

    instruction: str
    data: str = ""
    answer: str = ""
    family: str = ""
    id: str = ""

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

_NAMES = tuple(field.name for field in fields(Sample))
_ALPACA = {"instruction": "instruction", "data": "input", "answer": "output"}


def load_samples(path: str | os.PathLike) -> list[Sample]:
    """Samples of a `.jsonl` file (our field names) or a `.json` file (an Alpaca-shaped list).

    jsonl rows hold instruction, data, answer, family, id; all but the instruction may be absent.
    Alpaca rows hold instruction, input (may be absent), output; other keys are ignored, and
    surrounding whitespace is removed because model-written answers often start with blank lines.
    They may also stand one a line, as `.jsonl`. A sample without an id gets `<file stem>-<row
    number from 0>`.

    Raises ValueError that names file, row and field if a row cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a .jsonl or an Alpaca-shaped .json file.")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return [_from_alpaca(row, path, n) if _is_alpaca(row) else _from_row(row, path, n)
                for n, row in _jsonl_rows(path)]
    if suffix == ".json":
        return [_from_alpaca(row, path, n) for n, row in enumerate(_json_list(path))]
    raise ValueError(f"{path} ends in {path.suffix!r}; save it as .jsonl or .json.")


def save_samples(samples: Iterable[Sample], path: str | os.PathLike) -> None:
    """Writes one JSON object a line; `load_samples` gives the same samples back."""
    lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
    write_text(path, "".join(lines))


def shipped_samples(split: str) -> list[Sample]:
    """The samples that come with the kit: split is train, validation or heldout.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    return load_samples(DATA / "samples" / f"{split}.jsonl")


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


def _jsonl_rows(path: Path):
    # split("\n") and not splitlines(): JSON may hold other line separators inside a string
    for number, line in enumerate(_read(path).split("\n")):
        if line.strip():
            yield number, _parse(line, f"{path} row {number}")


def _json_list(path: Path) -> list:
    rows = _parse(_read(path), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds type {type(rows).__name__}; a .json file must be a list.")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}); repair or remove it.") from error


def _from_row(row, path: Path, number: int) -> Sample:
    where = f"{path} row {number}"
    _require_object(row, where)
    unknown = sorted(set(row) - set(_NAMES))
    if unknown:
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}; use {', '.join(_NAMES)}.")
    values = {name: _text(row.get(name, ""), where, name) for name in _NAMES}
    return _checked(values, path, number)


def _is_alpaca(row) -> bool:
    return isinstance(row, dict) and "output" in row and not {"data", "answer"} & set(row)


def _from_alpaca(row, path: Path, number: int) -> Sample:
    where = f"{path} row {number}"
    _require_object(row, where)
    row = {"input": ""} | row
    values = {ours: _text(row.get(key), where, key).strip() for ours, key in _ALPACA.items()}
    return _checked(values, path, number)


def _require_object(row, where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is of type {type(row).__name__}; a row must be a JSON object.")


def _text(value, where: str, field: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"of type {type(value).__name__}"
        raise ValueError(f"{where}, field {field!r} is {kind}; write a string.")
    if any("\ud800" <= c <= "\udfff" for c in value):  # half of a pair: no file can hold it
        raise ValueError(f"{where}, field {field!r} holds a lone surrogate; remove the character.")
    return value


def _checked(values: dict[str, str], path: Path, number: int) -> Sample:
    if not values["instruction"].strip():
        raise ValueError(f"{path} row {number}, field 'instruction' is empty; write one.")
    values["id"] = values.get("id") or f"{path.stem}-{number:05d}"
    return Sample(**values)
