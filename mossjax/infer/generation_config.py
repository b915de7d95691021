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

# Keys that change no reply, and why.
INERT = {
    '_from_model_config': 'provenance',
    'assistant_confidence_threshold': 'no assistant model drafts here; it changes speed alone',
    'assistant_early_exit': 'as above',
    'assistant_ensemble_weight': 'as above',
    'assistant_lookbehind': 'as above',
    'bos_token_id': 'the dialogue format has no start token',
    'cache_config': 'caching is chosen by the caller',
    'cache_implementation': 'as above',
    'compile_config': 'speed',
    'continuous_batching_config': 'speed',
    'decoder_start_token_id': 'for models with an encoder',
    'disable_compile': 'speed',
    'diversity_penalty': 'read with beams only, and num_beams is warned about itself',
    'early_stopping': 'as above',
    'is_assistant': 'no assistant model drafts here',
    'length_penalty': 'as above',
    'low_memory': 'speed',
    'max_cache_len': 'caching is chosen by the caller',
    'max_matching_ngram_size': 'of prompt lookup, which changes speed alone',
    'num_assistant_tokens': 'no assistant model drafts here',
    'num_assistant_tokens_schedule': 'as above',
    'num_beam_groups': 'read with beams only',
    'output_attentions': 'what is returned beside the reply',
    'output_hidden_states': 'as above',
    'output_logits': 'as above',
    'output_scores': 'as above',
    'pad_token_id': "the tokenizer's pad token is used",
    'prefill_chunk_size': 'speed',
    'prompt_lookup_num_tokens': 'changes speed alone',
    'remove_invalid_values': 'scores are finite',
    'renormalize_logits': 'what is drawn from is normalised in any case',
    'return_dict_in_generate': 'what is returned beside the reply',
    'speculation_type': 'speed',
    'target_lookbehind': 'no assistant model drafts here',
    'transformers_version': 'provenance',
    'trust_remote_code': 'no code is loaded',
    'use_cache': 'caching is chosen by the caller',
    'use_mtp': 'speed',
}

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
    for key in sorted(set(content) - READ - set(INERT) - {'eos_token_id'}):
        if not _neutral(key, content[key], content):
            yield key
    wanted = content.get('eos_token_id')
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if more := [eos for eos in wanted if eos is not None and eos not in stops]:
        yield f'eos_token_id {", ".join(map(str, more))}'
    layers = content.get('layers')
    for i, layer in enumerate(layers if isinstance(layers, list) else []):
        own = layer if isinstance(layer, dict) else {}
        for key in sorted(set(own) - CHANNEL - set(INERT)):
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
