"""Ranks: one job on several processes, as `accelerate launch` starts them.

One datum: of `each([a, b, c], f)` on two ranks, the first computes `f([a, c])`, the second
`f([b])`, and both get the three results in order.

Each rank runs the same program on a device of its own. What is below, except `end_after`, is called
by all of them, or the others wait for the one that does not; with one process, nothing is sent
anywhere. The first rank alone writes files. If a rank fails, its launcher ends the others, and the
whole fails.
"""

import datetime
import os
import threading
from collections.abc import Callable, Hashable, Sequence

PATIENCE = datetime.timedelta(hours=4)  # for a rank with longer texts, not for a dead one


def _state():
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def launched() -> int:
    """How many processes the launcher started, asked of the environment only."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharded() -> bool:
    """Whether the launcher asked for FSDP, which spreads the weights over the ranks."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def count() -> int:
    return _state().num_processes


def number() -> int:
    """Which rank this is, from 0."""
    return _state().process_index


def first() -> bool:
    """Whether this rank is the one that writes."""
    return number() == 0


def device() -> str:
    """The rank's own GPU, or the CPU."""
    state = _state()
    return str(state.device) if state.device.type == "cuda" else "cpu"


def wait() -> None:
    """Goes on when all ranks are here."""
    _state().wait_for_everyone()


def of_first(function: Callable):
    """What `function()` gives on the first rank; the others do not call it."""
    if count() == 1:
        return function()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([function() if first() else None])[0]


def each(values: Sequence, function: Callable[[list], list],
         groups: Sequence[Hashable] | None = None) -> list:
    """`function(values)`, a share of the values on each rank; all get all results, in order.

    `function` gives a result for each value it gets. Values of one group stay together.
    """
    if count() == 1:
        return function(list(values))
    from accelerate.utils import gather_object

    groups = range(len(values)) if groups is None else groups
    order = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    own = [k for k, group in enumerate(groups) if order[group] % count() == number()]
    found = function([values[k] for k in own])
    results = dict(gather_object(list(zip(own, found, strict=True))))
    return [results[k] for k in range(len(values))]


def refuse_uneven(batch_size: int) -> None:
    """Raises ValueError for a batch that the ranks cannot share equally."""
    if batch_size % count():
        raise ValueError(f"batch_size is {batch_size}, the pairs of all ranks together, and there "
                         f"are {count()} ranks; choose a multiple of {count()}")


def end_after(wait: Callable[[], object]) -> None:
    """Ends this process as soon as `wait` returns, whatever else it is doing.

    For a process that belongs to another, killed or not: `wait` returns when that one is gone.
    """
    def end() -> None:
        wait()
        os._exit(143)

    threading.Thread(target=end, daemon=True).start()
