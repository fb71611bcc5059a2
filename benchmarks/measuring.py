"""Measuring: contenders take turns in one run, ratios come from rounds, parity comes first."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from secalign_kit import training
from secalign_kit.markdown import table
from secalign_kit.samples import write_json


@dataclass(frozen=True)
class Result:
    """One line of a table. `ours` and `theirs` are medians in `unit`; `ratio` is ours to theirs,
    the median over rounds, with the smallest and largest round beside it."""

    measure: str
    against: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    rounds: int
    parity: str
    limit: str = ""
    goal: float | None = None


def take_turns(contenders: dict[str, Callable[[int], float]], rounds: int,
               label: str) -> dict[str, list[float]]:
    """Seconds (or MB) of each contender in each round; round -1 warms up and is not kept.

    A contender gets the number of the round and returns the seconds it wants to be judged by.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=(rounds + 1) * len(contenders), desc=label, leave=False) as bar:
        for number in range(-1, rounds):
            for name, contender in contenders.items():
                spent = contender(number)
                if number >= 0:
                    seconds[name].append(spent)
                bar.update()
    return seconds


def timed(function: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    value = function()
    return time.perf_counter() - began, value


def ratio_by_round(ours: list[float], theirs: list[float]) -> tuple[float, float, float, int]:
    """(median, smallest, largest, rounds) of their seconds to ours."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios), len(ratios)


def compare(seconds: dict[str, list[float]], theirs: str, measure: str, amount: float, unit: str,
            parity: str, limit: str = "", goal: float | None = None) -> Result:
    """The contender "ours" against another; `amount` is what one round works through."""
    per_second = {name: amount / statistics.median(times) for name, times in seconds.items()}
    return Result(measure, theirs, unit, per_second["ours"], per_second[theirs],
                  *ratio_by_round(seconds["ours"], seconds[theirs]), parity, limit, goal)


def machine() -> dict:
    """Versions, cores and the instruction sets that matter."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        line = next((x for x in text.splitlines() if x.startswith("flags")), "")
        flags = " ".join(f for f in line.split() if f.startswith(("avx", "amx")))
    return training.versions() | {"processor": platform.processor() or platform.machine(),
                                  "threads": torch.get_num_threads(), "flags": flags}


def peak_memory(module: str, *arguments: str) -> float:
    """Peak resident memory in MB of `python -m module arguments`, on its own (Linux)."""
    # not getrusage: its peak is inherited from the parent; VmHWM begins anew with the program
    code = ("import re, runpy, sys; sys.argv = sys.argv[1:]; "
            "runpy.run_module(sys.argv[0], run_name='__main__'); "
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])")
    done = subprocess.run([sys.executable, "-c", code, module, *arguments], check=True,
                          capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024


def markdown(results: list[Result]) -> str:
    """The results as a table; a missed goal says so."""
    rows = []
    for r in results:
        goal = "" if r.goal is None else f"{r.goal:g}x" + ("" if r.ratio >= r.goal else " missed")
        rows.append((r.measure, r.against, f"{r.ours:,.4g} {r.unit}", f"{r.theirs:,.4g}",
                     f"**{r.ratio:.2f}x** ({r.low:.2f} to {r.high:.2f}, n={r.rounds})", goal,
                     r.limit, r.parity))
    return table(("measure", "against", "ours", "theirs", "ratio (rounds)", "goal", "limit",
                  "parity"), rows) + "\n"


def save(results: list[Result], path: Path) -> None:
    """`path`.json and `path`.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"),
               {"machine": machine(), "results": [asdict(r) for r in results]})
    text = "\n".join(f"- {key}: {value}" for key, value in machine().items())
    path.with_suffix(".md").write_text(f"{markdown(results)}\n{text}\n", encoding="utf-8")
