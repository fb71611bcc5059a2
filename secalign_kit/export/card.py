"""The card of an exported folder: what was measured, on which base, by which recipe."""

import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from .. import markdown
from ..application import Source
from ..models import PRESETS
from ..studies import summaries
from ..visible import escape_hostile, visible
from .check import Check

LICENCES = {"smollm2-135m": "Apache-2.0"}
"""Of presets that come without a card, as the package says that carries them."""

USE = {
    "merged": """\
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)""",
    "adapter": """\
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)""",
}
ASK = """
turns = [{"role": "user", "content": "Count the words."},   # trusted: the application's own text
         {"role": "input", "content": "red, owl."}]         # data: whoever wrote it
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64, do_sample=False)[0]))"""


def licence(model: str) -> str:
    """The licence of a base model as its card says it, or that it is unknown."""
    plain = model.partition("+")[0]
    path = PRESETS[plain].path if plain in PRESETS else plain
    file = Path(path, "README.md")
    if not file.is_file():
        cached = try_to_load_from_cache(path, "README.md") if re.fullmatch(
            r"[\w.-]+/[\w.-]+", path) else None
        file = Path(cached) if isinstance(cached, str) else file
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    front = re.match(r"---\n(.*?)\n---\n", text, re.S)
    stated = re.search(r"^license: *['\"]?([\w.+-]+)", front[1], re.M) if front else None
    plainly = re.search(r"^Licen[cs]e: (.+?)\.?$", text, re.M)
    said = stated or plainly
    return escape_hostile(said[1]) if said else LICENCES.get(
        plain, "unknown: its card is not at hand, ask its publisher")


def table(source: Source, summary: dict | None) -> str:
    """The run's table, or that of a shipped adapter's card, or that there is none."""
    if summary:
        return ("95% Wilson intervals, on the kit's held-out test.\n\n"
                + summaries.short_markdown(summary))
    card = source.adapter / "README.md" if source.adapter else None
    if card and card.is_file():
        text = card.read_text(encoding="utf-8")
        if found := re.search(r"\n## (Measured.*?)\n## ", text, re.S):
            return visible(found[1].partition("\n")[2].strip()).replace("<", "&lt;")
    return ("Nothing. How often this model obeys injections is unknown: measure it with "
            "`secalign-kit evaluate` before you rely on it.")


def recipe_of(source: Source) -> str:
    config = source.folder and (source.folder / "config.yaml").read_text(encoding="utf-8")
    if not config and source.config:
        from ..config import RECIPES

        config = (RECIPES / f"{source.name}.yaml").read_text(encoding="utf-8")
    if not config:
        return "Unknown: the adapter came without one."
    # nothing ends the block before its end
    config = visible(config.strip()).replace("`", "'").replace("<", "&lt;")
    return f"```yaml\n{config}\n```"


def card(source: Source, title: str, kind: str, strength: float, dtype: str, four_bit: bool,
         measured: str, check: Check) -> str:
    """The README.md of an exported folder; `measured` is `table`, or one's own.

    What others wrote, as the base's and the adapter's publishers, is escaped.
    """
    base = PRESETS[source.model].path if source.model in PRESETS else source.model
    base = ("the embedded model of SecAlign Kit" if source.model == "toy" else
            f"`{escape_hostile(base)}`")
    form = (f"its base model's weights with the adapter added, in {dtype}" if kind == "merged"
            else "the adapter alone, to be loaded on its base model")
    trained = " It was trained on 4-bit weights (NF4)" + (
        ", and these, dequantized, are what was added to." if kind == "merged" else
        "; on the published weights its rates may be others.") if four_bit else ""
    seed = f"Seed: {source.config.seed}." if source.config else "Seeds: unknown."
    return markdown.card(
        escape_hostile(title),
        f"Made secure against prompt injection by SecAlign's preference optimization: {form}.\n"
        f"The adapter counts {strength:g} times.{trained}",
        f"Base model: {base}. Licence of the base: {licence(source.model)}.",
        "## Use",
        "The application's own words go into `user` (or `system`) turns, everything else into\n"
        "`input` turns. The chat template deletes from `input` whatever could be read as the end\n"
        "of the data. Text in the other turns is trusted, whoever wrote it.",
        f"```python\n{USE[kind]}{ASK}\n```",
        "## Measured", measured,
        "" if strength == 1 else
        f"This was measured with the adapter at full strength, not at {strength:g}.",
        "## Checked",
        "Reloaded in a process without the kit, and compared with the run on held-out prompts, "
        "half of\nthem attacked:", "```\n" + "\n".join(check.lines()) + "\n```",
        "## Recipe", recipe_of(source), seed,
        "## Limits",
        "The attacks are texts written beforehand. Nothing is claimed about attackers who adapt,\n"
        "about texts that are themselves requests, or about conversations of several turns, in\n"
        "which the model was not trained. What servers other than plain transformers make of this\n"
        "folder was not run.",
        tags=("secalign", "prompt-injection"),
    )
