"""SecAlign Kit: see an insecure instruct model become a secure one.

The data's journey, which is also the order in which modules may import one another:

    samples        instruction, data and the right answer
    injections     a payload written into the data by an attack
    frames         what an attacker writes around a payload, drawn at random
    pairs          prefer the answer to the instruction over the answer to the injection
    prompts        delimiters, the front-end filter, and a role for every token
    models         presets, 4-bit, adapters and their strength
    preference     response log-probs, the DPO loss and its relatives
    shared_prefix  both responses of a pair in one sequence
    logprobs       log p(chosen) and log p(rejected) of pairs, and their shift
    training       DPO with LoRA on a 4-bit model
    defenses       what a prompt can say against injections
    evaluation     attack success rate and utility
    figures        pictures of all this
    studies        variants with several seeds, and the papers' claims decided by them
    widgets        the explorer

The README draws the rest. Importing the package imports none of them.
"""

import logging
import os

# At import, bitsandbytes remarks on CPUs that an optional package of download-on-demand kernels is
# missing. The kit does without it on purpose; its own layers are told so in models.keep_gradients.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# Nobody asked huggingface_hub to report which libraries are used; who wants it to says so.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"


def load(name: str = "secalign", **options):
    """A secured model by name, to be asked: `load("secalign").answer(instruction, data)`.

    `name` is a run's folder, an adapter or a model; see `application.load`, which has the options.
    """
    from . import application

    return application.load(name, **options)
