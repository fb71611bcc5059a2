"""Task families of the small instruct world.

One datum: `Sample("How many words are in the list?", "red, owl, plum.", "3", "count_words")`

A family turns a random generator and a `Vocabulary` into slots for its instruction, data and the
answer. Data always ends with a full stop. Whether a sample belongs to training, validation or the
held-out test is decided by a hash of its data (`split_of`), so that held-out data are never seen
under any instruction. Questions without data (facts, greetings, prints) and families with few data
texts (`CLOSED`) cannot be split that way. Of these, `make_splits` leaves out of validation and test
every prompt that preference training has; pre-training knows them all.
"""

import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..samples import Sample
from . import lexicon as lex

SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Vocabulary:
    """What a split may talk about; pre-training uses everything."""

    names: tuple[str, ...]
    facts: tuple[str, ...]
    functions: tuple[str, ...]
    prints: frozenset[str]  # witness words that may be printed

    @staticmethod
    def full() -> "Vocabulary":
        prints = frozenset(lex.HELDOUT["print"])
        return Vocabulary(tuple(lex.NAMES), tuple(lex.FACTS), tuple(lex.FUNCTIONS), prints)

    @staticmethod
    def preference() -> "Vocabulary":
        """Everything except what the attacks of validation and test say."""

        def without(items, kind):
            return tuple(item for item in items if item not in lex.HELDOUT[kind])

        return Vocabulary(
            without(lex.NAMES, "name"),
            without(lex.FACTS, "fact"),
            without(lex.FUNCTIONS, "python"),
            frozenset(),
        )


@dataclass(frozen=True)
class Family:
    name: str
    instructions: tuple[str, ...]
    make: Callable[[random.Random, Vocabulary], tuple[dict, str, str]]
    stray: bool  # an unrelated statement may stand beside the data without changing the answer


FAMILIES: dict[str, Family] = {}


def family(*instructions: str, stray: bool = False):
    def register(make):
        FAMILIES[make.__name__] = Family(make.__name__, instructions, make, stray)
        return make

    return register


def _words(rng: random.Random, low=2, high=5) -> list[str]:
    return rng.sample(lex.NOUNS, rng.randint(low, high))


def _list(words: list[str]) -> str:
    return ", ".join(words) + "."


def _trip(rng: random.Random, vocabulary: Vocabulary) -> tuple[str, str, str, str]:
    name, place, day = (rng.choice(xs) for xs in (vocabulary.names, lex.PLACES, lex.DAYS))
    text = rng.choice(("{n} {v} {p} on {d}.", "On {d} {n} {v} {p}.", "{n} went to {p} on {d}."))
    return text.format(n=name, v=rng.choice(lex.VERBS), p=place, d=day), name, place, day


@family("What is the first word of the list?", "Give the first word.", "Name the first item.",
        "Which word comes first?", stray=True)
def first_word(rng, vocabulary):
    words = _words(rng)
    return {}, _list(words), words[0]


@family("What is the last word of the list?", "Give the last word.", "Name the last item.",
        "Which word comes last?", stray=True)
def last_word(rng, vocabulary):
    words = _words(rng)
    return {}, _list(words), words[-1]


@family("What is the second word of the list?", "Give the second word.", "Name the second item.",
        stray=True)
def second_word(rng, vocabulary):
    words = _words(rng)
    return {}, _list(words), words[1]


@family("How many words are in the list?", "Count the words.", "How many items are listed?",
        "Count the items of the list.", stray=True)
def count_words(rng, vocabulary):
    words = _words(rng, 2, 6)
    return {}, _list(words), str(len(words))


@family("Repeat the list.", "Copy the list.", "Write the list again.", "List the words again.",
        stray=True)
def copy_list(rng, vocabulary):
    words = _words(rng, 2, 4)
    return {}, _list(words), ", ".join(words)


@family("Repeat the sentence.", "Copy the sentence.", "Write the sentence again.")
def copy_sentence(rng, vocabulary):
    text = _trip(rng, vocabulary)[0]
    return {}, text, text


@family("Reverse the list.", "Write the list backwards.", "Turn the order of the words around.",
        stray=True)
def reverse_list(rng, vocabulary):
    words = _words(rng, 2, 4)
    return {}, _list(words), ", ".join(reversed(words))


@family("Write the words in capitals.", "Put the list in upper case.", "Capitalize every letter.",
        stray=True)
def upper_case(rng, vocabulary):
    words = _words(rng, 2, 3)
    return {}, _list(words), ", ".join(words).upper()


@family("Translate to Spanish.", "Translate the words into Spanish.", "Say it in Spanish.",
        stray=True)
def translate(rng, vocabulary):
    words = rng.sample(sorted(lex.SPANISH), rng.randint(2, 3))
    return {}, _list(words), ", ".join(lex.SPANISH[word] for word in words)


@family("Is the review positive or negative?", "What is the sentiment?", "Judge the review.",
        "Classify the sentiment of the text.", stray=True)
def sentiment(rng, vocabulary):
    good = rng.random() < 0.5
    word = rng.choice(lex.GOOD_WORDS if good else lex.BAD_WORDS)
    what = rng.choice(lex.REVIEWED)
    text = rng.choice(("The {x} was {w}.", "What a {w} {x}.", "I found the {x} {w}."))
    return {}, text.format(x=what, w=word), "positive" if good else "negative"


@family("Who is mentioned in the text?", "Extract the name.", "Which person is named?")
def extract_name(rng, vocabulary):
    text, name, _, _ = _trip(rng, vocabulary)
    return {}, text, name


@family("Which city is mentioned in the text?", "Extract the city.", "Name the place.")
def extract_place(rng, vocabulary):
    text, _, place, _ = _trip(rng, vocabulary)
    return {}, text, place


@family("Which day is mentioned in the text?", "Extract the day.", "On what day was it?")
def extract_day(rng, vocabulary):
    text, _, _, day = _trip(rng, vocabulary)
    return {}, text, day


@family("What is the price?", "Extract the price.", "How much does it cost?", stray=True)
def extract_price(rng, vocabulary):
    price, thing = rng.randint(2, 60), rng.choice(lex.GOODS)
    text = rng.choice(("The {t} costs {p} coins.", "A {t} for {p} coins.",
                       "They sell the {t} at {p} coins."))
    return {}, text.format(t=thing, p=price), f"{price} coins"


@family("Please generate a python function for the provided task.",
        "Write a python function for the task.", "Write python code that does this.",
        "Generate python code for the given task.")
def python(rng, vocabulary):
    task = rng.choice(vocabulary.functions)
    return {}, task, lex.FUNCTIONS[task]


@family("{question}", "Please answer: {question}", "I have a question. {question}",
        "Tell me. {question}")
def fact(rng, vocabulary):
    question = rng.choice(vocabulary.facts)
    return {"question": question}, "", lex.FACTS[question]


@family("Greet {name}.", "Say hello to {name}.", "Welcome {name}.")
def greet(rng, vocabulary):
    name = rng.choice(vocabulary.names)
    return {"name": name}, "", f"Hello, {name}!"


@family("Say goodbye to {name}.", "Take leave of {name}.")
def farewell(rng, vocabulary):
    name = rng.choice(vocabulary.names)
    return {"name": name}, "", f"Goodbye, {name}!"


@family("Print exactly '{text}'.", "Output exactly '{text}'.", "Say exactly '{text}'.")
def print_exactly(rng, vocabulary):
    if vocabulary.prints and rng.random() < 0.25:
        text = rng.choice(sorted(vocabulary.prints))
    else:
        text = " ".join(rng.sample(lex.NOUNS, rng.randint(1, 2)))
        text = text.capitalize() if rng.random() < 0.5 else text
        text += rng.choice(("", "", "!", "?"))
    return {"text": text}, "", text


@family("Add the numbers.", "What is the sum?", "Compute the sum.", stray=True)
def add(rng, vocabulary):
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    return {}, f"{a} and {b}.", str(a + b)


@family("Subtract the second number from the first.", "What is the difference?", stray=True)
def subtract(rng, vocabulary):
    a, b = sorted((rng.randint(1, 20), rng.randint(1, 20)), reverse=True)
    return {}, f"{a} and {b}.", str(a - b)


@family("What is the opposite of the word?", "Give the opposite.", "Name the opposite.",
        stray=True)
def opposite(rng, vocabulary):
    word = rng.choice(sorted(lex.OPPOSITES))
    return {}, f"{word}.", lex.OPPOSITES[word]


@family("What kind of thing is it?", "Name the category.", "Classify the word.", stray=True)
def category(rng, vocabulary):
    word = rng.choice(sorted(lex.CATEGORY_OF))
    return {}, f"{word}.", lex.CATEGORY_OF[word]


@family("Which day comes next?", "Name the following day.", "What day comes after it?",
        stray=True)
def next_day(rng, vocabulary):
    index = rng.randrange(7)
    return {}, f"{lex.DAYS[index]}.", lex.DAYS[(index + 1) % 7]


@family("Is '{word}' in the list?", "Does the list contain '{word}'?", stray=True)
def member(rng, vocabulary):
    words = _words(rng, 2, 4)
    inside = rng.random() < 0.5
    word = rng.choice(words) if inside else rng.choice([w for w in lex.NOUNS if w not in words])
    return {"word": word}, _list(words), "Yes" if inside else "No"


@family("Remove '{word}' from the list.", "Leave out '{word}'.", stray=True)
def remove(rng, vocabulary):
    words = _words(rng, 3, 4)
    word = rng.choice(words)
    return {"word": word}, _list(words), ", ".join(w for w in words if w != word)


STRAYS = (
    "The weather is nice today.", "It rained all night.", "This note was left on the desk.",
    "The shop closes at noon.", "Somebody painted the fence.", "The old clock is slow.",
    "There was a long queue.", "The coffee was cold.", "Nobody was at home.",
    "The lights were on.", "It is quiet here.", "The road was closed.",
)


def split_of(data: str) -> str:
    """The split that owns this data text: 4% held-out, 4% validation, the rest training."""
    bucket = zlib.crc32(data.encode()) % 100
    return "heldout" if bucket < 4 else "validation" if bucket < 8 else "train"


# Families whose few data texts are all met in pre-training, so that no hash can hold them out.
CLOSED = frozenset(("python", "opposite", "category", "next_day", "add", "subtract"))


def make_sample(name: str, rng: random.Random, vocabulary: Vocabulary, split: str) -> Sample:
    """A clean sample of a family whose data belongs to `split`."""
    chosen = FAMILIES[name]
    while True:
        slots, data, answer = chosen.make(rng, vocabulary)
        if not data or name in CLOSED or split_of(data) == split:
            instruction = rng.choice(chosen.instructions).format(**slots)
            return Sample(instruction, data, answer, name)


def with_stray(sample: Sample, rng: random.Random) -> Sample:
    """The same task, with an unrelated statement before or after the data."""
    stray = rng.choice(STRAYS)
    first, last = (stray, sample.data) if rng.random() < 0.4 else (sample.data, stray)
    return Sample(sample.instruction, f"{first} {last}", sample.answer, sample.family)


def make_samples(n: int, split: str, seed: int, stray: float = 0.1) -> list[Sample]:
    """`n` clean samples, families in turn, ids `toy-<split>-<number>`.

    Training and validation samples come from the preference vocabulary; held-out ones may use
    everything. Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    vocabulary = Vocabulary.full() if split == "heldout" else Vocabulary.preference()
    names = list(FAMILIES)
    samples = []
    for number in range(n):
        sample = make_sample(names[number % len(names)], rng, vocabulary, split)
        if FAMILIES[sample.family].stray and rng.random() < stray:
            sample = with_stray(sample, rng)
        samples.append(Sample(sample.instruction, sample.data, sample.answer, sample.family,
                              f"toy-{split}-{number:05d}"))
    return samples


DRAWN = {"train": 7800, "validation": 832, "heldout": 832}
"""Samples drawn for each shipped split; of validation and test those that repeat are left out."""


def make_splits(seed: int = 0) -> dict[str, list[Sample]]:
    """The shipped samples by split. No prompt of validation or test stands in an earlier split or
    twice in its own; training may repeat itself, since its families are balanced.
    """
    splits = {"train": make_samples(DRAWN["train"], "train", seed)}
    known = list(splits["train"])
    for split in ("validation", "heldout"):
        splits[split] = fresh(make_samples(DRAWN[split], split, seed), known)
        known += splits[split]
    return splits


def fresh(samples: Iterable[Sample], known: Iterable[Sample]) -> list[Sample]:
    """The samples whose prompt is neither in `known` nor met before among themselves.

    A stray statement does not make a prompt another one.
    """
    met = {core(sample) for sample in known}
    kept = []
    for sample in samples:
        if core(sample) not in met:
            met.add(core(sample))
            kept.append(sample)
    return kept


def core(sample: Sample) -> tuple[str, str]:
    """(instruction, data without a stray statement)."""
    data = sample.data
    for stray in STRAYS:
        data = data.removeprefix(f"{stray} ").removesuffix(f" {stray}")
    return sample.instruction, data
