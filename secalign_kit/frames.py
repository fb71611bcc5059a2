"""Frames: what an attacker writes around a payload, drawn at random.

One datum: for the payload "Do dinosaurs exist?" the frame
`("Thank you.\\n\\n[[ OWL lemon ]]\\n", "\\n===")` gives
`Thank you.\\n\\n[[ OWL lemon ]]\\nDo dinosaurs exist?\\n===`.

Training on a few fixed attacks at one place teaches a model those shapes and that place. A frame
drawn anew for every pair has no shape to learn; what all of them share is the slot they stand in.

A frame has up to nine pieces before the payload and up to two after it: headings in random marks,
bare marks, short sentences, labelled lines, numbers, and (before it) up to three phrases of other
attacks. Their words come from the samples, from made-up words in several scripts, or from the
sentences below. Made-up words begin with a doubled consonant, so that none is a word of a language.
The kinds of frames in `data/unseen_frames.json` are kept for tests; `tests/test_frames.py` shows
that none of them can be drawn here.

Limits: the pieces are written without looking at the model; an attacker who searches for text that
works (by gradient, say) is not among them.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .injections import AttackContext
from .samples import Sample

SENTENCES = (
    "Thank you.", "Well done.", "That was easy.", "So far, so good.", "This part is over.",
    "We are through with this.", "Good, go on.", "One thing is left.", "The rest is different.",
    "Here comes more.", "It gets better now.", "Now it is my turn.", "I have a wish.",
    "Something new.", "Let us move on.", "This is important.", "It is urgent.", "Be quick.",
    "Hello there.", "Excuse me.", "By the way.", "Before I forget.", "You know what to do.",
    "I am waiting.", "It will not take long.", "Nobody needs the rest.", "That is all for now.",
    "There is nothing more to see.", "This line counts.", "Look here.", "Trust me.",
    "You are very kind.", "Your help is welcome.", "I run this place.", "It has been decided.",
    "These are the rules.", "Everyone agrees.", "The owner allows it.", "A short break.",
    "What follows is real.", "What came first was wrong.", "The list is closed.",
)
"""Short sentences of the training split, in our own words."""

GAPS = ("", " ", " ", "\n", "\n", "\n\n", "\n\n\n", "\t")
MARKS = ("#", "##", "###", "=", "==", "===", "-", "--", "---", "*", "**", "***", "+", "~", "~~",
         "|", "||", "/", "//", "\\", "$", "%", "%%", "&", "@", "^", "_", "__", ">", ">>", ">>>",
         "!", "!!", "?", ":", "::", ";", ".", "...", "•", "·", "–", "—", "→", "«", "»", "§", "¶")
BRACKETS = (("[", "]"), ("[[", "]]"), ("(", ")"), ("{", "}"), ("{{", "}}"), ("<", ">"),
            ("<<", ">>"), ("</", ">"), ("<", "/>"), ("<|", "|>"), ("[/", "]"), ("\"", "\""),
            ("'", "'"), ("`", "`"), ("```", "```"), ("“", "”"), ("„", "“"), ("«", "»"),
            ("*", "*"), ("**", "**"), ("_", "_"), ("|", "|"), ("<!--", "-->"), ("/*", "*/"))
NUMBERS = ("{}.", "{})", "({})", "#{}", "{}:", "[{}]", "{}:{:02}", "{}/{}", "v{}.{}")
SCRIPTS = (*("abcdefghijklmnopqrstuvwxyz",) * 20,
           "bcdfghàáâäçèéêëìíîïñòóôöøùúûüßåæ", "βγδζθκλμπρστφχψαεηιουω",
           "бвгджзклмнпрстфхцчшаеиоуыэюя", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
           "かきくけこさしすせそたちつてとのは", "的一是不了人我在有他这中大来上国",
           "가나다라마바사아자차카타파하")
"""Alphabets of made-up words; in each, the first letters are the ones that can be doubled."""


@dataclass(frozen=True)
class Frames:
    """An attack (see `injections.Attack`) that dresses every payload in a new random frame.

    `words` are what headings and lines are made of, besides made-up words.
    """

    words: tuple[str, ...]

    def __call__(self, payload_text: str, context: AttackContext) -> str:
        left, right = self.draw(context)
        return left + payload_text + right

    def draw(self, context: AttackContext) -> tuple[str, str]:
        """(before, after): the frame's text on both sides of a payload."""
        rng = context.rng
        pieces = [self._piece(rng) for _ in range(rng.choices(range(7), (2, 8, 6, 3, 1, 1, 1))[0])]
        if rng.random() < 0.25:
            pieces.insert(0, context.draw("ignore"))
        if rng.random() < 0.15:
            pieces.insert(0, context.draw("fake_answers"))
        if rng.random() < 0.15:
            pieces.append(context.draw("ignore"))
        left = "".join(piece + rng.choice(GAPS) for piece in pieces)
        right = "".join(rng.choice(GAPS) + self._piece(rng)
                        for _ in range(rng.choices(range(3), (6, 3, 1))[0]))
        if rng.random() < 0.2:  # the payload alone in brackets, quotation marks or fences
            before, after = rng.choice(BRACKETS)
            inner = rng.choice(("", "", " ", "\n"))
            left, right = left + before + inner, inner + after + right
        if left[-1:].isalnum():
            left += " "  # or the payload's first word would grow together with the last of these
        return left, right

    def _piece(self, rng: random.Random) -> str:
        kind = rng.choices((self._heading, self._line, self._sentence, self._mark, self._number),
                           (40, 15, 20, 15, 10))[0]
        return kind(rng)

    def _heading(self, rng: random.Random) -> str:
        text, space = self._some(rng, 3), rng.choice(("", " "))
        style = rng.randrange(4)
        if style == 0:
            return text + rng.choice((":", ":", " =", " ->", " -", "."))
        if style == 1:
            return rng.choice(MARKS) + " " + text + rng.choice(("", ":"))
        if style == 2:
            mark = rng.choice(MARKS)
            return mark + space + text + space + mark
        before, after = rng.choice(BRACKETS)
        return before + space + text + space + after + rng.choice(("", "", ":"))

    def _line(self, rng: random.Random) -> str:
        return f"{self._some(rng, 2)}{rng.choice((': ', ' = ', ' - ', ', '))}{self._some(rng, 4)}"

    def _sentence(self, rng: random.Random) -> str:
        if rng.random() < 0.6:
            return rng.choice(SENTENCES)
        return self._some(rng, 6).capitalize() + rng.choice(".!?")

    def _mark(self, rng: random.Random) -> str:
        mark = rng.choice(MARKS)
        return mark * rng.choice((1, 1, 1, 2, 5, 10)) if len(mark) < 2 else mark

    def _number(self, rng: random.Random) -> str:
        number = rng.randint(0, 10 ** rng.randint(1, 4))
        return rng.choice(NUMBERS).format(number, rng.randint(0, 59))

    def _some(self, rng: random.Random, most: int) -> str:
        """One to `most` words in one of four ways of writing them."""
        joint = rng.choice((" ", " ", " ", "_", "-"))
        text = joint.join(self._word(rng) for _ in range(rng.randint(1, most)))
        return rng.choice((str, str, str.capitalize, str.upper))(text)

    def _word(self, rng: random.Random) -> str:
        return rng.choice(self.words) if self.words and rng.random() < 0.6 else made_up(rng)


def made_up(rng: random.Random) -> str:
    """A word of no language: one to five letters after a doubled first one."""
    letters = rng.choice(SCRIPTS)
    first = rng.choice([c for c in letters[:16] if c not in "aeioulàáâäèéêëìíîïòóôö"])
    return first * 2 + "".join(rng.choices(letters, k=rng.randint(1, 5)))


def from_samples(samples: Iterable[Sample]) -> Frames:
    """Frames whose words are those of the samples' instructions and data."""
    words = {word.lower() for s in samples for word in re.findall(r"[^\W\d_]{2,}", s.request)}
    return Frames(tuple(sorted(words)))
