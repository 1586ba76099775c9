"""The micro-lm's tokenizer: one token per word, JSON fragments included, and its chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resd_lightning.context.playbook import entry_id
from resd_lightning.micro.world import COLOURS, MAX_MACHINES, ORDERS, PAINTS, machine_name

USER, ASSISTANT, END, PAD, UNKNOWN = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "<|unknown|>"
SECTION_WORDS = ("book", "solved", "tried", "said", "insight", "reflect", "tag", "curate")
WORDS = ("machine", "tape", "rule", "answer", "turns", "into", "wrong", "malformed", ";", "repeat", "recall")
COMPARISON_WORDS = (":", "same", "other")
MAX_ENTRIES_EVER = 800
"""Playbook entries that have a name in the vocabulary: e00001 to e00800."""
JSON_WORDS = (
    '{"analysis":"',
    '","key_insight":"',
    '","tags":[',
    '{"id":"',
    ',{"id":"',
    '","tag":"helpful"}',
    '","tag":"harmful"}',
    "]}",
    '","operations":[',
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
    """Return the tokenizer: words by white space, each one token, decoded with single spaces."""
    ids = [entry_id(number) for number in range(1, MAX_ENTRIES_EVER + 1)]
    machines = [machine_name(number) for number in range(MAX_MACHINES)]
    control = [PAD, UNKNOWN, USER, ASSISTANT, END]
    words = [
        *control,
        *COLOURS,
        *ORDERS,
        *PAINTS,
        *WORDS,
        *COMPARISON_WORDS,
        *SECTION_WORDS,
        *JSON_WORDS,
        *machines,
        *ids,
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
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
