"""What a checkpoint's generation_config.json says, and which of it has no effect here.

Every key falls in one of four classes: read (by `Settings` and `SystemPrompts`), inert (changes no
reply; the reason is listed), neutral (a setting we do not have, at the value at which it does
nothing) and the rest, which is warned about: a reply may differ from what the file asks for.
Names and neutral values: transformers, GenerationConfig.
"""

from collections.abc import Collection, Iterator
import pathlib

from absl import logging

from mossjax.files import read_json

NAME = 'generation_config.json'

CHANNEL = frozenset({'temperature', 'top_k', 'top_p', 'repetition_penalty'})
READ = CHANNEL | {'do_sample', 'layers', 'max_new_tokens', 'min_new_tokens', 'system_prompts'}

# Keys that change no reply, by the reason why.
INERT_BY_REASON = {
    'provenance': ('_from_model_config', 'transformers_version', 'trust_remote_code'),
    'ids that the dialogue format or the tokenizer gives': (
        'bos_token_id', 'decoder_start_token_id', 'pad_token_id',
    ),
    'how a reply is computed, not what it is': (
        'cache_config', 'cache_implementation', 'compile_config', 'continuous_batching_config',
        'disable_compile', 'low_memory', 'max_cache_len', 'prefill_chunk_size',
        'remove_invalid_values', 'renormalize_logits', 'use_cache', 'use_mtp',
    ),
    'drafts of another model or of the prompt, which change the speed alone': (
        'assistant_confidence_threshold', 'assistant_early_exit', 'assistant_ensemble_weight',
        'assistant_lookbehind', 'is_assistant', 'max_matching_ngram_size', 'num_assistant_tokens',
        'num_assistant_tokens_schedule', 'prompt_lookup_num_tokens', 'speculation_type',
        'target_lookbehind',
    ),
    'what is returned beside a reply': (
        'output_attentions', 'output_hidden_states', 'output_logits', 'output_scores',
        'return_dict_in_generate',
    ),
    'read with beams only, and num_beams is warned about itself': (
        'diversity_penalty', 'early_stopping', 'length_penalty', 'num_beam_groups',
    ),
}  # fmt: skip
INERT = frozenset(key for keys in INERT_BY_REASON.values() for key in keys)

# Settings we do not have, at the values at which they do nothing (besides null, false and empty).
NEUTRAL = {
    'encoder_no_repeat_ngram_size': 0,
    'encoder_repetition_penalty': 1,
    'epsilon_cutoff': 0,
    'eta_cutoff': 0,
    'frequency_penalty': 0,
    'guidance_scale': 1,
    'max_length': 20,  # what Transformers writes for "not set"
    'min_length': 0,
    'min_p': 0,
    'no_repeat_ngram_size': 0,
    'num_beams': 1,
    'num_return_sequences': 1,
    'penalty_alpha': 0,
    'presence_penalty': 0,
    'top_h': 1,
    'typical_p': 1,
}
# Of those, the ones that Transformers reads only where it draws.
DRAWN = frozenset({'epsilon_cutoff', 'eta_cutoff', 'min_p', 'top_h', 'typical_p'})


def read(model_dir, stops: Collection[int]) -> dict:
    """The object in generation_config.json, {} where there is none; warns once, as `ignored` says.

    Args:
      stops: text ids that end a reply here.

    Raises:
      InputError: the file holds something else.
    """
    path = pathlib.Path(model_dir) / NAME
    content = read_json(path) if path.exists() else {}
    if names := list(ignored(content, stops)):
        logging.warning(
            '%s: %s %s no effect here, so replies may differ from what the file asks for',
            path, ', '.join(names), 'have' if len(names) > 1 else 'has',
        )
    return content


def ignored(content: dict, stops: Collection[int]) -> Iterator[str]:
    """Keys of a generation config that would change a reply if we honoured them."""
    for key in sorted(set(content) - READ - INERT - {'eos_token_id'}):
        if not _neutral(key, content[key], content):
            yield key
    wanted = content.get('eos_token_id')
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if more := [eos for eos in wanted if eos is not None and eos not in stops]:
        yield f'eos_token_id {", ".join(map(str, more))}'
    layers = content.get('layers')
    for i, layer in enumerate(layers if isinstance(layers, list) else []):
        own = layer if isinstance(layer, dict) else {}
        for key in sorted(set(own) - CHANNEL - INERT):
            if not _neutral(key, own[key], {**content, **own}):
                yield f'layers[{i}].{key}'


def _neutral(key: str, value, content: dict) -> bool:
    if value is None or value is False or value in ([], {}, ''):
        return True
    if key in DRAWN and content.get('do_sample') is False:
        return True
    if key == 'max_length' and content.get('max_new_tokens') is not None:
        return True  # the other one wins
    return not isinstance(value, bool) and key in NEUTRAL and value == NEUTRAL[key]
