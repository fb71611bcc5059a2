"""Widgets: thin interactive views over the kit's functions, each with a static twin.

One datum: `view = playground(bundle)`; `view.parts.injection.value = "Do penguins fly?"` makes both
models answer anew, `view.parts.result.value` is the HTML shown, and `view.twin()` is
`{"image/png": ...}`, what a reader sees where no kernel runs (GitHub, nbviewer).

    view             what every view is made of; bars, and notebooks without widgets
    html             prompts, tables and bars as HTML, all of it escaped
    inputs           texts, samples and models that several views ask for
    choices          the models that the playground offers, with examples
    searcher         a search for an attack, watched and stopped
    playground       both models answer an attacked prompt side by side
    token_lens       how training moved every token of both responses
    adapter_dial     the adapter's strength, from 0 to 1.5
    attack_bench     attacks and defenses to choose, and the items that failed
    training_replay  a recorded run, step by step

What a model, data or an attacker says reaches HTML through `visible.escape_hostile` only, and is
never given to a widget that typesets it (a `Label` runs MathJax, which knows links). Each view says
bad input in one sentence in place and shows a bar while it computes.

Limits: written for what ipywidgets 7.7 and 8 share. Colours repeat what words and lines say. One
kernel computes one thing at a time: a second click waits for the first, or for the next step of a
search.
"""

from .adapter_dial import Point, adapter_dial, measure_strengths
from .attack_bench import attack_bench, measure_bench
from .playground import Play, play, playground
from .token_lens import token_lens
from .training_replay import training_replay
from .view import View, with_progress, without_widgets

__all__ = [
    "Play", "Point", "View", "adapter_dial", "attack_bench", "measure_bench", "measure_strengths",
    "play", "playground", "token_lens", "training_replay", "with_progress", "without_widgets",
]
