"""Give each model of this folder a tokenizer of one word per token id: `python sweeps/h200/tokenizer.py`.

The models have no weights and no text. But a server makes text of what it generates, and other benchmarks send text, so
that words are needed: id 0 is "a", 26 "ba", and every text of words has as many tokens as words. 11 MB, not in git.
"""

from __future__ import annotations

import json
from pathlib import Path


def word(number: int) -> str:
    """`number` in base 26, with letters as digits."""
    letters = ""
    while True:
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
        if not number:
            return letters


def write(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json for the vocabulary of the config.json in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    special = {config["bos_token_id"]: "<bos>", config["eos_token_id"]: "<eos>", config["vocab_size"] - 1: "<unk>"}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {special.get(number, word(number)): number for number in range(config["vocab_size"])}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **plain} for number, text in sorted(special.items())],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    for path in sorted((Path(__file__).parent / "models").glob("*/config.json")):
        write(path.parent)
