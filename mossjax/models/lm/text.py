"""The text tokenizer of a checkpoint: a thin wrapper around its `tokenizer.json`.

Two ways to encode. `encode` finds the file's control tokens inside the text, as upstream does.
`encode_plain` never does: what a user writes stays text, whatever it spells.
"""

import json
import pathlib

from mossjax.errors import InputError
from mossjax.files import read_json

IM_START, IM_END, ENDOFTEXT = '<|im_start|>', '<|im_end|>', '<|endoftext|>'


class TextTokenizer:
    """Text <-> ids.

    Attributes:
      im_start, im_end, endoftext: ids of the chat control tokens.
      pad: id for padding rows.
      size: one above the highest id.
    """

    def __init__(self, spec: dict, pad_token: str | None = None):
        """From the parsed tokenizer.json; `pad_token` is <|endoftext|> by default."""
        import tokenizers

        self._full = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(without_control_tokens(spec)))
        self._control = {token['id'] for token in spec.get('added_tokens', [])}
        self._control.discard(self._full.token_to_id(_unknown_token(spec) or ''))
        self.im_start = self.id(IM_START)
        self.im_end = self.id(IM_END)
        self.endoftext = self.id(ENDOFTEXT)
        self.pad = self.id(pad_token or ENDOFTEXT)
        self.size = 1 + max(self._full.get_vocab(with_added_tokens=True).values())

    @classmethod
    def open(cls, directory) -> 'TextTokenizer':
        """Reads tokenizer.json (and the pad token of tokenizer_config.json, if there is one).

        Raises InputError if the file is missing, unreadable, or lacks a chat control token.
        """
        directory = pathlib.Path(directory)
        spec = read_json(directory / 'tokenizer.json')
        settings = directory / 'tokenizer_config.json'
        pad = read_json(settings).get('pad_token') if settings.exists() else None
        try:
            return cls(spec, pad['content'] if isinstance(pad, dict) else pad)
        except InputError as error:
            raise InputError(f'{directory / "tokenizer.json"}: {error}') from None
        except Exception as error:  # the library raises nothing narrower
            raise InputError(
                f'{directory / "tokenizer.json"} is no tokenizer ({error}); copy it anew'
            ) from error

    def id(self, token: str) -> int:
        """The id of one token, by its string."""
        found = self._full.token_to_id(token)
        if found is None:
            raise InputError(f'no token {token!r}; the tokenizer is not one of this model family')
        return found

    def encode(self, text: str) -> list[int]:
        """As upstream: control tokens spelt out in the text become control ids."""
        return self._full.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Text only: no control id ever comes out."""
        found = self._plain.encode(text, add_special_tokens=False).ids
        control = self._control.intersection(found)
        if control:  # a vocabulary that holds a control token as an ordinary piece
            token = self._full.id_to_token(control.pop())
            raise InputError(f'the text spells the control token {token!r}; remove it')
        return found

    def decode(self, ids) -> str:
        """Text of the ids, special tokens left out; broken UTF-8 shows as U+FFFD."""
        return self._full.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_complete(self, ids) -> str:
        """As `decode`, without a last character whose bytes have not all arrived."""
        return self.decode(ids).rstrip('\ufffd')


def without_control_tokens(spec: dict) -> dict:
    """The same tokenizer.json, blind to its added tokens: they are not matched in the text.

    Added tokens are cut out of the text before the model sees it, also those the file does not
    call special, so all of them go. A whole-word vocabulary would find them again: they leave
    that too, except the one that stands for unknown words.
    """
    blind = {**spec, 'added_tokens': [], 'post_processor': None}
    model, keep = spec['model'], _unknown_token(spec)
    added = {token['content'] for token in spec.get('added_tokens', [])} - {keep}
    if isinstance(model.get('vocab'), dict):
        made = {''.join(m.split(' ') if isinstance(m, str) else m) for m in model.get('merges', [])}
        vocab = {k: v for k, v in model['vocab'].items() if k not in added or k in made}
        blind['model'] = {**model, 'vocab': vocab}
    return blind


def _unknown_token(spec: dict) -> str | None:
    return spec['model'].get('unk_token')
