"""The micro-lm's tokenizer: one token per word, JSON fragments included, and its chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resd_lightning.micro.world import COLOURS, MAX_MACHINES, ORDERS, PAINTS, machine_name

USER, ASSISTANT, END, PAD, UNKNOWN = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "<|unknown|>"
SECTION_WORDS = ("book", "solved", "tried", "said", "insight", "reflect", "tag", "curate")
WORDS = ("machine", "tape", "rule", "answer", "turns", "into", "wrong", "malformed", ";", "repeat")
JSON_WORDS = (
    '{"key_insight":"',
    '","tags":[',
    '{"tags":[',
    '{"id":"',
    ',{"id":"',
    '","tag":"helpful"}',
    '","tag":"harmful"}',
    "]}",
    '{"operations":[',
    '{"type":"ADD","section":"others","content":"',
    '"}',
)
"""The JSON that the micro-lm writes, in fragments; joined by spaces they parse under the project's own parsers."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    + ASSISTANT
    + " {{ message['content'] }} "
    + END
    + " {% else %}"
    + USER
    + " {{ message['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}"
    + ASSISTANT
    + "{% endif %}"
)


def micro_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: words by white space, entry ids digit by digit, decoded with single spaces."""
    ids = ["e00", "e01", *(f"##{digit}" for digit in range(10))]
    machines = [machine_name(number) for number in range(MAX_MACHINES)]
    control = [PAD, UNKNOWN, USER, ASSISTANT, END]
    words = [*control, *COLOURS, *ORDERS, *PAINTS, *WORDS, *SECTION_WORDS, *JSON_WORDS, *machines, *ids]
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=64))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
