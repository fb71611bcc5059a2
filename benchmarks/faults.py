"""`python -m benchmarks.faults [--kills 20]`: runs that are killed at random moments, compared.

A small training, a small evaluation and small searches (GCG, in two processes) run once
undisturbed. Then each runs again and is killed (SIGKILL) at a moment drawn at random, and started
again with the same command, until it was killed so many times and has ended. A run that ends before
its death is kept, and another one begun. Adapters, logs, pairs and records must be those of the
undisturbed run, byte for byte; of searches, whose processes end in any order, the records as a set,
without their seconds. Prints a markdown table; exits with 1 if anything differs.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

KIT = [sys.executable, "-m", "secalign_kit"]
TRAIN = ["train", "--config", "demo", *(part for setting in (
    "n_pairs=640", "save_steps=4", "probe_every=4") for part in ("--set", setting)), "--output"]
EVALUATE = ["evaluate", "secalign", "--n", "200", "--attacks", "five", "--records"]
ATTACK = ["attack", "none", "--n", "12", "--steps", "4", "--candidates", "16", "--jobs", "2",
          "--folder"]
EARLIEST = 0.3  # of the usual seconds; before, Python is still importing


def undisturbed(command: list[str]) -> float:
    """Runs a command of the kit to its end; its seconds."""
    began = time.perf_counter()
    subprocess.run([*KIT, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def disturbed(command: list[str], place: Path, kills: int, seconds: float,
              rng: random.Random) -> list[Path]:
    """Kills a command, which writes to `place`, so many times, within its usual seconds.

    Returns what its runs left that came to their end.
    """
    ended: list[Path] = []
    while True:
        process = subprocess.Popen([*KIT, *command], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(
                timeout=rng.uniform(EARLIEST, 1.0) * seconds if kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()  # until processes that it had started are gone, too
            kills -= 1
            continue
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}: {said}")
        ended.append(place.rename(place.with_stem(f"{place.stem}-{len(ended)}")))
        if not kills:
            return ended


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def parts_of_a_run(folder: Path) -> dict[str, str]:
    names = {"pairs": "pairs/data-00000-of-00001.arrow", "log": "metrics.jsonl",
             "adapter": "adapter/adapter_model.safetensors"}
    return {f"training: {what}": digest((folder / name).read_bytes())
            for what, name in names.items()}


def records(path: Path) -> dict[str, str]:
    return {"evaluation: records": digest(path.read_bytes())}


def searches(folder: Path) -> dict[str, str]:
    found = [json.loads(line) | {"seconds": 0}
             for line in (folder / "records.jsonl").read_text().splitlines()]
    found.sort(key=lambda record: record["key"])
    return {"searches: records": digest(json.dumps(found).encode())}


JOBS: dict[str, tuple[list[str], Callable[[Path], dict[str, str]]]] = {
    "run": (TRAIN, parts_of_a_run), "answers.jsonl": (EVALUATE, records),
    "searches": (ATTACK, searches)}
"""Where a command writes, under the folder of this script's run: the command, and its results."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, differ = random.Random(arguments.seed), False
    print("| what | kills | runs that ended | undisturbed | killed |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, results) in JOBS.items():
            whole, broken = Path(folder, f"whole-{name}"), Path(folder, name)
            seconds = undisturbed([*command, str(whole)])
            ended = disturbed([*command, str(broken)], broken, arguments.kills, seconds, rng)
            for what, expected in results(whole).items():
                found = {results(path)[what] for path in ended}
                differ |= found != {expected}
                said = "the same" if found == {expected} else f"DIFFERENT: {', '.join(found)}"
                print(f"| {what} | {arguments.kills} | {len(ended)} | `{expected}` | {said} |",
                      flush=True)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
