"""Progress of long work: a bar in a terminal or a notebook, and elsewhere a line per tenth.

One datum: `training: 40 of 188, 21 s (loss=0.412)`, on stderr, where that is a file or a pipe.
"""

import sys
import time

from tqdm.auto import tqdm


def bar(total: int, words: str, shown: bool = True, leave: bool = False, **options):
    """Something with `update(count)`, `set_postfix(**values)` and `close()`, as tqdm has it.

    `options` are tqdm's own, such as `unit`. With `shown` false, nothing is written.
    """
    if shown and not sys.stderr.isatty() and not _notebook():
        return Lines(total, words)
    return tqdm(total=total, desc=words, disable=not shown, leave=leave, **options)


def _notebook() -> bool:
    """Whether a kernel of Jupyter runs us; its stderr is no terminal, but it shows bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Lines:
    """A line each time that another tenth of `total` is done."""

    def __init__(self, total: int, words: str):
        self.total, self.words, self.n, self.values = total, words, 0, ""
        self.began = time.perf_counter()

    def update(self, count: int = 1) -> None:
        before, self.n = self.n, self.n + count
        if 10 * before // self.total != 10 * self.n // self.total:
            seconds = time.perf_counter() - self.began
            print(f"{self.words}: {self.n} of {self.total}, {seconds:.0f} s{self.values}",
                  file=sys.stderr, flush=True)

    def set_postfix(self, **values) -> None:
        """What the next line says behind the count."""
        self.values = f" ({', '.join(f'{name}={value}' for name, value in values.items())})"

    def close(self) -> None:
        """Nothing; a line ends by itself."""
