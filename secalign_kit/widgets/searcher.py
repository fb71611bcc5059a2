"""Attack for me: GCG on the reader's own prompt, which the reader watches and can stop."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import ipywidgets

from .. import generation, models, prompts
from ..attackers.gcg import by_gradient
from ..attackers.search import Budget, judge, stepwise
from ..evaluation import Item
from ..models import Bundle
from ..visible import number
from .choices import Choice
from .html import cards_html, message_html, table_html
from .inputs import WHICH, judged, switched
from .view import Progress, View, answering, common, row, wide

STEPS = (10, 25, 50, 100)
PAUSE = 0.01  # seconds between two steps, in which the kernel sees to everything else


@dataclass(frozen=True)
class Seen:
    """A search after some steps of `allowed`: its best text until now, and the answer to it.

    `text` is the attacker's, payload and all, and `found` the part that was searched for. `loss`
    is -log p of the wanted answer after it and `latest` the lowest of the last step, in nats.
    """

    steps: int
    allowed: int
    queries: int
    seconds: float
    loss: float
    latest: float
    text: str
    found: str
    answer: str
    obeyed: bool


def target(bundle: Bundle, item: Item) -> Item:
    """The reader's item as a search attacks it. Raises ValueError if no answer could be told."""
    item, wanted = judged(item), item.witness
    if not wanted.strip(" .!?"):
        raise ValueError("The insecure model says nothing to the injection alone, so there is no "
                         "answer to search for; write another injection.")
    if wanted == item.expected:
        raise ValueError("Instruction and injection have the same answer, so nobody could tell "
                         "which was obeyed; write another injection.")
    length = len(prompts.encode_response(bundle.tokenizer, bundle.format, wanted))
    if item.judge == "matches" and length > generation.MAX_NEW_TOKENS:
        raise ValueError(f"The answer to the injection alone is longer than "
                         f"{generation.MAX_NEW_TOKENS} tokens; ask for something shorter.")
    return item


def watched(bundle: Bundle, item: Item, which: str, budget: Budget,
            seed: int = 0) -> Iterator[Seen]:
    """GCG against the "insecure" or the "secure" model, before any step and after each.

    Between two steps the bundle is as it was, so that it can answer others. The search is that of
    `attackers.gcg` with `native`, except that the best text until now is always asked, and ends it
    if it is obeyed. Raises ValueError as `attackers.blanks.make` does.
    """
    began, best = time.perf_counter(), None
    runs = stepwise(bundle, item, by_gradient(bundle), budget, seed)
    while True:
        with switched(bundle, which), models.merged(bundle), models.native_precision(bundle):
            if not (run := next(runs, None)):
                return
            if run.best != best or run.obeyed:
                best, attacked = run.best, run.blank.attacked(run.best)
                answer, obeyed = run.verdict or judge(bundle, attacked)
        yield Seen(run.steps, budget.steps, run.queries.count, time.perf_counter() - began,
                   run.loss, run.losses[-1], attacked.data[attacked.start : attacked.end],
                   run.blank.texts(best)[1], answer, obeyed)
        if obeyed:
            return


def seen_html(seen: Seen, name: str) -> str:
    """A search under way, as a table."""
    rows = (("step", f"{seen.steps} of {seen.allowed}; {seen.queries:,} queries, "
                     f"{seen.seconds:.0f} s"),
            ("loss", f"{number(seen.latest)} nats at this step, {number(seen.loss)} for the text "
                     "below"),
            ("best text so far", seen.text), ("the answer to it", seen.answer or "(nothing)"))
    return table_html(("", f"{name} model"), rows, "Loss: how unlikely the injected answer is")


def outcome(seen: Seen, stopped: bool) -> str:
    """How a search ended, in words."""
    spent = f"{seen.steps} steps and {seen.queries:,} queries"
    if seen.obeyed:
        return f"obeyed after {spent}"
    return f"stopped after {spent}, not obeyed until then" if stopped else (
        f"not obeyed within {spent}")


def ended_html(ended: Sequence[tuple[str, Seen, bool]]) -> str:
    """(model, its last `Seen`, whether it was stopped) as verdict cards."""
    cards = [(name, outcome(seen, stopped), seen.answer) for name, seen, stopped in ended]
    withstood = not all(seen.obeyed for _, seen, _ in ended)
    return cards_html(cards) + message_html(
        "A budget that did not suffice says nothing about a larger one." if withstood else "")


def in_background(work: Coroutine) -> asyncio.Task | None:
    """Lets the kernel do the work between its messages; where no loop runs, it is done at once."""
    try:
        return asyncio.get_running_loop().create_task(work)
    except RuntimeError:
        return asyncio.run(work)


def searcher(ask: Callable[[], tuple[Choice, Item]], found: Callable[[str], None],
             fields: Callable[[], Sequence]) -> View:
    """A button that attacks what `ask` gives: a model and an item for it.

    What `fields` gives cannot be changed meanwhile; `found` is told the last text that was obeyed.
    Parts: against, steps, attack (button), stop (button), live, cards, message, progress.
    """
    parts = SimpleNamespace(
        against=wide(ipywidgets.Dropdown, "against", options=[
            ("the secure model", ("secure",)), ("the insecure model", ("insecure",)),
            ("both, one after the other", WHICH)]),
        steps=wide(ipywidgets.Dropdown, "budget", value=25, options=[
            (f"{count} steps", count) for count in STEPS]),
        attack=ipywidgets.Button(description="Attack for me",
                                 tooltip="search for a text that makes the model obey"),
        stop=ipywidgets.Button(description="Stop", tooltip="end the search after this step",
                               disabled=True),
        live=ipywidgets.HTML(), cards=ipywidgets.HTML(), **common(),
    )
    state: dict = {"stopped": False, "task": None}

    async def attack() -> None:
        lock(True)
        texts = []
        try:
            with answering(parts, "live", "cards") as progress:
                choice, item = ask()
                item, ended, parts.cards.value = target(choice.load(), item), [], ""
                for which in parts.against.value:
                    name = choice.names[WHICH.index(which)]
                    steps = watched(choice.load(), item, which,
                                    Budget(parts.steps.value, choice.candidates))
                    seen = await follow(steps, name, parts.live.value if ended else "", progress)
                    ended.append((name, seen, state["stopped"]))
                    parts.cards.value = ended_html(ended)
                    texts += [seen.found] if seen.obeyed else []
                    if state["stopped"]:
                        break
        finally:
            lock(False)
        if texts:
            found(texts[-1])

    async def follow(steps: Iterator[Seen], name: str, before: str, progress: Progress) -> Seen:
        for _, seen in zip(progress(range(parts.steps.value + 1)), steps, strict=False):
            parts.live.value = before + seen_html(seen, name)
            await asyncio.sleep(PAUSE)
            if state["stopped"]:
                break
        return seen

    def lock(locking: bool) -> None:
        state["stopped"] = False
        for field in (*fields(), parts.against, parts.steps, parts.attack):
            field.disabled = locking
        parts.stop.disabled = not locking

    def start(_=None) -> None:
        state["task"] = in_background(attack())  # kept, or it might be collected

    def stop(_=None) -> None:
        state["stopped"] = True

    parts.attack.on_click(start)
    parts.stop.on_click(stop)
    return View("Searcher", [row(parts.against, parts.steps),
                             row(parts.attack, parts.stop, parts.progress), parts.message,
                             parts.cards, parts.live], parts,
                lambda: {"text/html": parts.cards.value})
