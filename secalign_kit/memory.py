"""Memory: going on with less at once where a GPU's memory runs out.

One datum: of 64 prompts, a batch of 64 runs out; it is done again as twice 32, one warning says so,
and what follows is done in batches of 32.

Limits: the memory of GPUs only; a computer that runs out of its own ends the process.
"""

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterable

import torch


def ran_out(error: BaseException) -> bool:
    """Whether a GPU's memory was too small; cuBLAS says so in words of its own."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "ALLOC_FAILED" in str(error))


def release() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_two(part: list) -> list[list]:
    """Both halves, or what cannot be halved by itself."""
    middle = len(part) // 2
    return [part[:middle], part[middle:]] if middle else [part]


def each(parts: Iterable[list], function: Callable[[list], None],
         halves: Callable[[list], list[list]] = in_two,
         size: Callable[[list], int] = len) -> None:
    """`function(part)` for each part in order, or for its halves where memory runs out.

    After that, no part is tried whose size is more than half of what did not fit. Raises what
    `function` raises, and lack of memory for a part that cannot be halved.
    """
    queue, most = deque(parts), float("inf")
    while queue:
        part = queue.popleft()
        smaller = halves(part)
        if len(smaller) > 1 and (size(part) > most or not _fits(function, part)):
            if size(part) <= most:
                most = -(-size(part) // 2)
                warnings.warn(f"the GPU's memory is too small for {size(part)} at once; going on "
                              f"with {most}", stacklevel=3)
            queue.extendleft(reversed(smaller))
        elif len(smaller) == 1:
            function(part)


def _fits(function: Callable[[list], None], part: list) -> bool:
    try:
        function(part)
        return True
    except RuntimeError as error:
        if not ran_out(error):
            raise
    release()  # out here, where the error holds no tensor any more
    return False
