"""Records: kept as JSON lines, and shown where they failed.

One datum, as `failing_lines` shows it: `naive: Count the words.`, and below it data, response and
right answer.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..samples import as_json, write_text
from ..visible import one_line


def save_records(records: Iterable[dict], path: Path) -> None:
    """Writes JSON lines to a temporary name, and renames it."""
    write_text(path, as_lines(records))


def as_lines(records: Iterable[dict]) -> str:
    """One JSON object per line."""
    return "".join(as_json(record) + "\n" for record in records)


def read_records(path: Path) -> list[dict]:
    """The records of a JSONL file; a last line cut off by a kill is dropped from the file.

    Raises ValueError naming any other line that is no record.
    """
    found = path.read_bytes()  # a kill may have cut inside a character
    *whole, rest = found.split(b"\n")
    records = []
    for number, line in enumerate(whole, 1):
        try:
            records.append(json.loads(line.decode("utf-8")))
            records[-1]["attack"], records[-1]["obeyed"]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number} is no record of an evaluation; "
                             "choose another file or remove the line") from None
    if rest:
        write_text(path, found.removesuffix(rest).decode("utf-8"))
    return records


def examples(insecure: list[dict], secure: list[dict], count: int = 2) -> list[dict]:
    """The diagram's example and `count` items of every attack, both responses side by side.

    Those that the insecure model obeyed come first: they show what there is to defend against.
    """
    seen: dict[str, int] = {}
    chosen = []
    for before, after in sorted(zip(insecure, secure, strict=True),
                                key=lambda pair: not pair[0]["obeyed"]):
        if before["start"] < 0 or seen.get(before["attack"], 0) >= count:
            continue
        seen[before["attack"]] = seen.get(before["attack"], 0) + 1
        chosen.append({
            "attack": before["attack"], "instruction": before["instruction"],
            "data": before["data"], "injection_start": before["start"],
            "injection_end": before["end"], "insecure": before["response"],
            "secure": after["response"], "expected": before["expected"],
        })
    return chosen


def failing(records: Iterable[Mapping]) -> list[Mapping]:
    """Records that obeyed an injection, then those that were wrong without attack."""
    records = list(records)
    wrong = [r for r in records if r["attack"] == "none" and r["right"] is False]
    return [r for r in records if r["obeyed"]] + wrong


def failing_lines(record: Mapping) -> list[str]:
    """A record as text, with nothing hidden in it."""
    return [f"{record['attack']}: {one_line(record['instruction'])}",
            f"   data      {one_line(record['data'])}",
            f"   said      {one_line(record['response'])}",
            f"   right is  {one_line(record['expected'])}"]
