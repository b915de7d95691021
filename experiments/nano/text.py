"""The nano text tokenizer: Qwen's kind, trained offline on the words of the nano world.

    python -m experiments.nano.text --out runs/nano/text

Byte-level BPE with Qwen's split pattern and the names of Qwen3's special tokens, so that the nano
checkpoint takes the same road through the code as a released one. Every word of the world is one
token, with and without the space before it, and any UTF-8 text comes back byte for byte. Unlike
Qwen's there is no Unicode normalisation, which would break that.
"""

from __future__ import annotations

from collections.abc import Iterable
import json
from pathlib import Path

from absl import flags

from experiments.nano import world as worlds
from experiments.nano.script import start

ENDOFTEXT, IM_START, IM_END = '<|endoftext|>', '<|im_start|>', '<|im_end|>'
SOSP = '<|object_ref_start|>'  # start of speech
MODALITY_PAD = '<|empty|>'  # in the text channel: this row carries speech
SPECIALS = (ENDOFTEXT, IM_START, IM_END, SOSP, MODALITY_PAD)
ROLES = ('system', 'user', 'assistant')
# Contractions, words with one leading mark, single digits, punctuation, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def train(words: Iterable[str]):
    """A `tokenizers.Tokenizer` in which each of the words (and chat roles) is one token.

    Ids: 256 bytes, merges, then the special tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    listed = sorted({*words, *ROLES})
    corpus = [spelt for word in listed for spelt in (word, f' {word}')]
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16,  # never reached: merging ends when every listed word is whole
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIALS]
    )
    return tokenizer


def save(tokenizer, directory: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json as a Hugging Face directory has them."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / 'tokenizer.json'))
    flags_of_added = {
        'lstrip': False,
        'normalized': False,
        'rstrip': False,
        'single_word': False,
        'special': True,
    }
    config = {
        'add_bos_token': False,
        'add_prefix_space': False,
        'added_tokens_decoder': {
            str(tokenizer.token_to_id(name)): {'content': name, **flags_of_added}
            for name in SPECIALS
        },
        'bos_token': None,
        'clean_up_tokenization_spaces': False,
        'eos_token': IM_END,
        'errors': 'replace',
        'model_max_length': 4096,
        'pad_token': ENDOFTEXT,
        'split_special_tokens': False,
        'tokenizer_class': 'Qwen2Tokenizer',
        'unk_token': None,
    }
    text = json.dumps(config, indent=2) + '\n'
    (directory / 'tokenizer_config.json').write_text(text)


def main() -> None:
    tokenizer = train(worlds.build().words)
    save(tokenizer, flags.FLAGS.out)
    print(f'{flags.FLAGS.out}: {tokenizer.get_vocab_size()} tokens')


if __name__ == '__main__':
    flags.DEFINE_string('out', None, 'directory for tokenizer.json', required=True)
    start(main)
