"""Tokenizers of the kinds that models have, made in a moment, and chat templates in their style."""

import functools
import json

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = ["Count the words. Which word comes first?\n\nSum up: red, owl. The answer is two.\n",
        "[INST] Count the words. red owl [/INST] two words\n<<SYS>>\nGreet Anna.\n<</SYS>>\n\n",
        "system user assistant model input instruction response: What is 2+2? USER: ASSISTANT:\n",
        "You are a helpful assistant. ### input:\n### response:\nYes. said: yes! mazebra\n\n"]


@functools.cache
def _trained(kind: str) -> str:
    backend = Tokenizer(models.BPE())
    if kind == "bytes":
        # like Llama 3 and Qwen: punctuation takes the line breaks after it
        split = pre_tokenizers.Split(
            Regex(r" ?[a-zA-Z]+|\d| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
        alphabet = list("▁")
    lines = TEXT if kind == "bytes" else (line for text in TEXT for line in text.splitlines())
    backend.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return backend.to_str()


def byte_level(special, unspecial=(), normalizer=None, **options) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of Llama 3 and Qwen; `special` and `unspecial` are its added tokens."""
    backend = Tokenizer.from_str(_trained("bytes"))
    backend.decoder = decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(unspecial))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def sentence_piece(special=(), space="normalizer", **options) -> PreTrainedTokenizerFast:
    """BPE with bytes for unknown characters, and a space before a text: by a normalizer at each
    text between added tokens (Llama 2), or by Metaspace once ("first") or always ("always")."""
    trained = json.loads(_trained("spaces"))["model"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)}
    for token in trained["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in trained["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>",
                                   fuse_unk=True, byte_fallback=True))
    if space == "normalizer":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>", *special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", **options)


def loop(turn: str, generation: str, before: str = "") -> str:
    return (before + "{% for m in messages %}" + turn + "{% endfor %}"
            "{% if add_generation_prompt %}" + generation + "{% endif %}")


ASSISTANT = "m.role == 'assistant'"
CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
CHATML = loop(CHATML_TURN, "{{ '<|im_start|>assistant\n' }}")
DEFAULT_SYSTEM = loop(CHATML_TURN, "{{ '<|im_start|>assistant\n' }}",
                      "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
                      "You are a helpful assistant.<|im_end|>\n' }}{% endif %}")
THINKING = loop(
    "{% if " + ASSISTANT + " %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + "
    "'<|im_end|>\n' }}{% else %}" + CHATML_TURN + "{% endif %}",
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}")
ALWAYS_THINKING = loop(CHATML_TURN, "{{ '<|im_start|>assistant\n<think>\n' }}")
FINAL_CHANNEL = loop(
    "{% if " + ASSISTANT + " %}{{ '<|im_start|>assistant<think>final</think>' + m.content + "
    "'<|im_end|>' }}{% else %}" + CHATML_TURN + "{% endif %}", "{{ '<|im_start|>assistant' }}")
HEADERS = loop("{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + "
               "'<|eot_id|>' }}", "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
               "{{ bos_token }}")
DATED = HEADERS.replace("{{ bos_token }}", "{{ bos_token + '<|start_header_id|>system"
                        "<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') + "
                        "'<|eot_id|>' }}")
INPUT_ROLE = HEADERS.replace("m.role +", "('untrusted' if m.role == 'input' else m.role) +")
ALTERNATING = ("{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
               "{{ raise_exception('user and assistant take turns') }}{% endif %}")
MISTRAL = loop(ALTERNATING + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
               "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}", "", "{{ bos_token }}")
GEMMA = loop(ALTERNATING + "{{ '<start_of_turn>' + ('model' if " + ASSISTANT + " else m.role) + "
             "'\n' + m.content | trim + '<end_of_turn>\n' }}", "{{ '<start_of_turn>model\n' }}",
             "{{ bos_token }}")
SYSTEM_FOLDED = (
    "{{ bos_token }}{% set ns = namespace(first='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.first = m.content + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if " + ASSISTANT + " else m.role) + '\n' + ns.first + "
    "m.content | trim + '<end_of_turn>\n' }}{% set ns.first = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
LLAMA2 = (
    "{% set ns = namespace(first='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.first = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.first + m.content | trim + ' [/INST]' }}"
    "{% set ns.first = '' %}{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}")
LABELS = loop("{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}"
              "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + "
              "eos_token }}{% endif %}", "{{ 'ASSISTANT:' }}", "{{ bos_token }}")
ROLE_TAGS = loop("{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}",
                 "{{ '<|assistant|>\n' }}")

IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>", "<tool_call>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")


def chatml(template=CHATML):
    return byte_level(IM, THINK, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                      chat_template=template)


def llama3(template=HEADERS):
    return byte_level(LLAMA3, bos_token=LLAMA3[0], eos_token="<|eot_id|>", chat_template=template)


def gemma(template=GEMMA):
    return byte_level(TURNS, ["\n\n", "<table>"], bos_token="<bos>", eos_token="<eos>",
                      chat_template=template)


FAMILIES = {
    "chatml": chatml, "default system": lambda: chatml(DEFAULT_SYSTEM),
    "thinking": lambda: chatml(THINKING), "final channel": lambda: chatml(FINAL_CHANNEL),
    "headers": llama3, "dated": lambda: llama3(DATED), "input role": lambda: llama3(INPUT_ROLE),
    "gemma": gemma, "system folded": lambda: gemma(SYSTEM_FOLDED),
    "mistral": lambda: sentence_piece(chat_template=MISTRAL),
    "mistral, first": lambda: sentence_piece(space="first", chat_template=MISTRAL),
    "mistral, tokens": lambda: sentence_piece(["[INST]", "[/INST]"], "first",
                                              chat_template=MISTRAL),
    "llama 2": lambda: sentence_piece(chat_template=LLAMA2),
    "labels": lambda: sentence_piece(chat_template=LABELS),
    "role tags": lambda: sentence_piece(chat_template=ROLE_TAGS),
    "chatml, spaces": lambda: sentence_piece(IM, chat_template=CHATML),
    "chatml, always": lambda: sentence_piece(IM, "always", chat_template=CHATML),
}


def folder_of(path, tokenizer, rows=None, **options) -> str:
    """A tiny random Llama with this tokenizer, in a folder."""
    sizes = dict(vocab_size=rows or len(tokenizer), hidden_size=16, intermediate_size=32,
                 num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                 max_position_embeddings=256) | options
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
