"""Start-up: what the command line and the bare import cost before any work, in wall seconds.

Each contender is a process of its own, started anew each round beside an empty interpreter, which
is the floor for all of them. `ratio` is theirs to ours, above 1 when we take less time.
"""

import os
import statistics
import subprocess
import sys
import sysconfig

from .measuring import Result, ratio_by_round, take_turns, timed

HELP, IMPORT, FLOOR, TRL = ("secalign-kit --help", "import secalign_kit", "python -c pass",
                            "trl --help")
ASKED = {  # the same inside an interpreter that can be asked afterwards which modules it has
    HELP: """
from contextlib import suppress
from secalign_kit.cli import main
with suppress(SystemExit):
    main(["--help"])
""",
    IMPORT: "import secalign_kit",
}


def script(name: str) -> str:
    """The path of a console script of this environment."""
    return os.path.join(sysconfig.get_path("scripts"), name)


def commands() -> dict[str, list[str]]:
    """What is run, by name; TRL's command only where it is installed."""
    found = {HELP: [script("secalign-kit"), "--help"],
             IMPORT: [sys.executable, "-c", "import secalign_kit"],
             FLOOR: [sys.executable, "-c", "pass"]}
    if os.path.exists(script("trl")):
        found[TRL] = [script("trl"), "--help"]
    return found


def seconds_of(command: list[str]) -> float:
    """Wall seconds from start to exit; raises CalledProcessError if it fails."""
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))[0]


def loads_torch(code: str) -> str:
    """Whether a fresh interpreter has imported torch after `code`, in words."""
    asked = f"{code}\nimport sys\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)
    return "torch imported" if done.stdout.split()[-1] == "True" else "torch not imported"


def against(seconds: dict[str, list[float]], ours: str, theirs: str, parity: str) -> Result:
    return Result(ours, theirs, "s", statistics.median(seconds[ours]),
                  statistics.median(seconds[theirs]),
                  *ratio_by_round(seconds[ours], seconds[theirs]), parity)


def startup(rounds: int) -> list[Result]:
    run = {name: lambda number, command=command: seconds_of(command)
           for name, command in commands().items()}
    seconds = take_turns(run, rounds, "start-up")
    torch = {name: loads_torch(code) for name, code in ASKED.items()}
    pairs = [(HELP, TRL), (HELP, FLOOR), (IMPORT, FLOOR)]
    return [against(seconds, ours, theirs, torch[ours]) for ours, theirs in pairs
            if theirs in seconds]
