"""`python -m benchmarks.faults [--kills 20]`: runs that are killed at random moments, compared.

A small training, a small evaluation and small searches (GCG) run once undisturbed. Then each runs
again and is killed (SIGKILL) at a moment drawn at random, and started again with the same command,
until it was killed so many times and has ended. The two adapters, logs and sets of records must be
the same, byte for byte; of searches, all but their seconds. Prints a markdown table; exits with 1
if anything differs.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KIT = [sys.executable, "-m", "secalign_kit"]
TRAIN = ["train", "--config", "demo", *(part for setting in (
    "n_pairs=640", "save_steps=4", "probe_every=4") for part in ("--set", setting))]
EVALUATE = ["evaluate", "secalign", "--n", "40", "--attacks", "five"]
ATTACK = ["attack", "none", "--n", "12", "--steps", "4", "--candidates", "16"]
ADAPTER = "adapter/adapter_model.safetensors"


def undisturbed(arguments: list[str]) -> float:
    """Runs a command to its end; its seconds."""
    began = time.perf_counter()
    subprocess.run([*KIT, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def disturbed(arguments: list[str], kills: int, seconds: float, rng: random.Random,
              fresh) -> tuple[int, int]:
    """Kills a command so many times, at moments within its usual seconds; (kills, ends)."""
    done = ends = 0
    while done < kills or not ends:
        process = subprocess.Popen([*KIT, *arguments], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            code = process.wait(rng.uniform(0.1, 1.0) * seconds if done < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            continue
        if code:
            raise SystemExit(f"{' '.join(arguments)} ended with code {code} after {done} kills")
        ends += 1
        if done < kills:  # it was quicker than its death: once more from the start
            fresh()
    return done, ends


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def searches(path: Path) -> str:
    """A digest of records without their seconds."""
    records = [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]


def training(folder: Path, kills: int, rng: random.Random) -> list[tuple]:
    """Rows (what, kills, undisturbed digest, disturbed digest) of a training."""
    whole, broken = folder / "whole", folder / "broken"
    seconds = undisturbed([*TRAIN, "--output", str(whole)])
    results: list[tuple] = []

    def fresh() -> None:
        broken.rename(folder / f"ended-{time.monotonic_ns()}")

    done, _ = disturbed([*TRAIN, "--output", str(broken)], kills, seconds, rng, fresh)
    for run in (broken, *folder.glob("ended-*")):
        results += [(f"training, {name}", done, digest(whole / name), digest(run / name))
                    for name in (ADAPTER, "metrics.jsonl")]
    return results


def evaluation(folder: Path, kills: int, rng: random.Random) -> list[tuple]:
    """The same of an evaluation; its records, in the order of the file."""
    whole, broken = folder / "whole.jsonl", folder / "broken.jsonl"
    seconds = undisturbed([*EVALUATE, "--records", str(whole)])
    done, _ = disturbed([*EVALUATE, "--records", str(broken)], kills, seconds, rng,
                        lambda: broken.rename(folder / f"ended-{time.monotonic_ns()}.jsonl"))
    return [("evaluation, records", done, digest(whole), digest(path))
            for path in (broken, *folder.glob("ended-*.jsonl"))]


def attack(folder: Path, kills: int, rng: random.Random) -> list[tuple]:
    """The same of searches against a model."""
    whole, broken = folder / "attack", folder / "attack-broken"
    seconds = undisturbed([*ATTACK, "--folder", str(whole)])
    done, _ = disturbed([*ATTACK, "--folder", str(broken)], kills, seconds, rng,
                        lambda: broken.rename(folder / f"attacked-{time.monotonic_ns()}"))
    return [("searches, records", done, searches(whole / "records.jsonl"),
             searches(run / "records.jsonl"))
            for run in (broken, *folder.glob("attacked-*"))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        rows = (training(Path(folder), arguments.kills, rng)
                + evaluation(Path(folder), arguments.kills, rng)
                + attack(Path(folder), arguments.kills, rng))
    print("| what | kills | undisturbed | killed | |\n|---|---|---|---|---|")
    for what, kills, one, two in rows:
        print(f"| {what} | {kills} | `{one}` | `{two}` | {'same' if one == two else 'DIFFERENT'} |")
    return int(any(one != two for _, _, one, two in rows))


if __name__ == "__main__":
    sys.exit(main())
