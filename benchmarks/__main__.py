"""`python -m benchmarks [PART ...]`: tables and JSON, of startup, pretraining, scoring, asr, dpo,
memory, growth, loop, pairs, gcg and english.

They go to `runs/bench`. `pairs`, which takes as long as all others together, `gcg`, which needs
nanoGCG, and `english`, which needs `secalign-kit model smollm2-135m`, are left out unless they are
named.
"""

import argparse
import os
import warnings
from pathlib import Path

os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
warnings.filterwarnings("ignore")

from . import asr, dpo, english, gcg, loop, measuring, pretraining, scoring, startup  # noqa: E402

PARTS = {"startup": startup.startup, "pretraining": pretraining.pretraining,
         "scoring": scoring.scoring, "asr": asr.asr, "dpo": dpo.embedded,
         "memory": dpo.memory, "growth": dpo.growth, "loop": loop.loop,
         "pairs": dpo.by_pairs, "gcg": gcg.gcg, "english": english.english}
USUAL = [name for name in PARTS if name not in ("pairs", "gcg", "english")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("parts", nargs="*", default=USUAL, choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    for part in arguments.parts:
        results = PARTS[part](arguments.rounds)
        measuring.save(results, arguments.output / part)
        print(measuring.markdown(results))


if __name__ == "__main__":
    main()
