"""Wrong programs, each one step away from the right one, and the tests that must notice.

Data only; `mutations.py` applies them. `old` must occur exactly once in its file.
"""

from typing import NamedTuple


class Alteration(NamedTuple):
    """One change of the source.

    Attributes:
      name: what is wrong afterwards.
      file: path in the repository.
      old, new: text to replace and what replaces it.
      tests: files, or pytest node ids, of which at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MODEL = 'mossjax/models/lm/model.py'
PARITY = 'tests/parity/test_language_model.py'
# The tests that are closest, not whole files: what else would fail says nothing new and takes long.
FORWARD, CACHED = f'{PARITY}::test_full_forward', f'{PARITY}::test_cached_forward'
EMBEDDING = 'tests/models/lm/test_model.py::test_embedding_is_chosen_by_the_text_id_alone'
DIRECTORIES = 'tests/convert/test_lm_directories.py'
ENCODER = 'tests/models/tokenizer/test_encoder.py'

LANGUAGE_MODEL = (
    Alteration(
        'query norm removed', 'mossjax/nn/transformer.py',
        "q = norm_rope(project(x, self.q[...], 'btd,dnh->btnh'), self.q_norm, rotation)",
        "q = norm_rope(project(x, self.q[...], 'btd,dnh->btnh'), lambda x: x, rotation)",
        (FORWARD,),
    ),
    Alteration(
        'key norm removed', 'mossjax/nn/transformer.py',
        "k = norm_rope(project(x, self.k[...], 'btd,dkh->btkh'), self.k_norm, rotation)",
        "k = norm_rope(project(x, self.k[...], 'btd,dkh->btkh'), lambda x: x, rotation)",
        (FORWARD,),
    ),
    Alteration(
        'speech branch reads the text branch instead of the trunk', MODEL,
        'audio, _ = run(self.audio_branch, h)',
        'audio, _ = run(self.audio_branch, text)',
        (FORWARD,),
    ),
    Alteration(
        'speech branch reads the text branch, in cached decoding only', MODEL,
        "audio, new_audio = self.branch('audio', h,",
        "audio, new_audio = self.branch('audio', text,",
        (CACHED,),
    ),
    Alteration(
        'the branches start one layer early in the Qwen3 they come from',
        'mossjax/convert/qwen3.py',
        'shared + int(m[1])', 'shared - 1 + int(m[1])',
        (f'{DIRECTORIES}::test_qwen3_layers_vocabulary_and_speech_side',),
    ),
    Alteration(
        'RoPE base is a constant', MODEL,
        'rope.frequencies(self.config.head_dim, self.config.rope_theta)',
        'rope.frequencies(self.config.head_dim, 10000.0)',
        (FORWARD,),
    ),
    Alteration(
        'a row is embedded by its audio id', MODEL,
        'is_speech = text == self.config.modality_pad_token_id',
        'is_speech = audio != self.config.audio_pad_token_id',
        (EMBEDDING, FORWARD),
    ),
    Alteration(
        'both channels of a row are embedded and added', MODEL,
        'jnp.where(is_speech[..., None], self.audio_embed(audio), self.text_embed(text))',
        'self.audio_embed(audio) + self.text_embed(text)',
        (EMBEDDING, FORWARD),
    ),
    Alteration(
        'padding behind a piece counts as read', 'mossjax/models/lm/cache.py',
        'own = jax.lax.dynamic_slice_in_dim(self.length, first, len(count)) + count',
        'own = jax.lax.dynamic_slice_in_dim(self.length, first, len(count)) + new[0].shape[2]',
        (f'{PARITY}::test_padding_in_a_cache_changes_nothing',),
    ),
    Alteration(
        'unused audio ids may be drawn', 'mossjax/models/lm/machine.py',
        'forbidden = (column > ids.eosp) | (', 'forbidden = (column < 0) | (',
        ('tests/models/lm/test_machine.py',),
    ),
    Alteration(
        'segments of a packed row see each other', 'mossjax/models/lm/loss.py',
        'Mask(causal=True, q_segments=segments, kv_segments=segments)', 'Mask(causal=True)',
        ('tests/models/lm/test_loss.py::test_packed_rows_equal_examples_one_by_one',),
    ),
    Alteration(
        'attention ignores segments', 'mossjax/ops/attention.py',
        'if self.q_segments is not None:', 'if False:',
        ('tests/data/test_packed_model.py',),
    ),
    Alteration(
        'labels are not shifted', 'mossjax/data/recipes.py',
        'labels[:-1, channel][wanted] = rows[1:, channel][wanted]',
        'labels[1:, channel][wanted] = rows[1:, channel][wanted]',
        ('tests/data/test_recipes.py',),
    ),
    Alteration(
        'rows that are not supervised count in the mean', 'mossjax/ops/losses.py',
        'counted = jnp.where(labels == IGNORE, 0.0, weights)', 'counted = weights',
        ('tests/ops/test_losses.py',),
    ),
    Alteration(
        'one key for the draws of all steps', 'mossjax/infer/lanes.py',
        'keys = jax.vmap(jax.random.fold_in)(settings.keys, k)',
        'keys = jax.vmap(jax.random.fold_in)(settings.keys, 0 * k)',
        ('tests/infer/test_generate.py::test_steps_draw_independently',),
    ),
)

TOKENIZER = (
    Alteration(
        'codebook distance without the norm of the code', 'mossjax/models/tokenizer/quantizer.py',
        'return jnp.sum(jnp.square(codes), axis=-1) + squares - 2.0 * (p @ codes.T)',
        'return squares - 2.0 * (p @ codes.T)',
        (f'{ENCODER}::test_distances_against_float64',),
    ),
    Alteration(
        'the encoder looks ahead', 'mossjax/models/tokenizer/encoder.py',
        'y = layer(x, Mask(causal=True))', 'y = layer(x, Mask())',
        (f'{ENCODER}::test_no_code_hears_what_comes_after_it',),
    ),
    Alteration(
        'dynamic range of the log-mel 7 decades instead of 8', 'mossjax/models/tokenizer/mel.py',
        'peak[..., None, None] - 8.0',
        'peak[..., None, None] - 7.0',
        (f'{ENCODER}::test_log_mel',),
    ),
    Alteration(
        'moving average of the codebook with the weights exchanged',
        'mossjax/models/tokenizer/quantizer.py',
        'total = decay * book.total + (1.0 - decay) * sums',
        'total = (1.0 - decay) * book.total + decay * sums',
        ('tests/train/test_tokenizer.py::test_moving_averages_of_the_first_step',),
    ),
    Alteration(
        'no gradient passes the codebook', 'mossjax/models/tokenizer/quantizer.py',
        'return jax.lax.stop_gradient(q) + (p - jax.lax.stop_gradient(p))',
        'return jax.lax.stop_gradient(q)',
        (f'{ENCODER}::test_straight_through_is_exact_forward_and_transparent_backward',),
    ),
    Alteration(
        'query heads exchanged with their components on conversion', 'mossjax/convert/rules.py',
        'lambda x, s: x.T.reshape(s),\n'
        '    lambda x, s: x.reshape(x.shape[0], -1).T,\n'
        '    lambda s: (s[1] * s[2], s[0]),',
        'lambda x, s: x.T.reshape(s[0], s[2], s[1]).swapaxes(1, 2),\n'
        '    lambda x, s: x.swapaxes(1, 2).reshape(x.shape[0], -1).T,\n'
        '    lambda s: (s[1] * s[2], s[0]),',
        (f'{DIRECTORIES}::test_heads_are_split_as_the_layer_splits_them',),
    ),
    Alteration(
        'stereo is averaged', 'mossjax/infer/audio.py',
        'block.samples[:, 0].copy()', 'block.samples.mean(1)',
        ('tests/infer/test_audio.py',),
    ),
)

DECODER = (
    Alteration(
        'no guidance: the conditional velocity alone', 'mossjax/models/flow/solver.py',
        'return (1 + guidance) * with_conditions - guidance * without',
        'return with_conditions',
        ('tests/models/flow/test_solver.py',
         'tests/models/flow/test_golden.py::test_without_prompt_and_with_another_guidance'),
    ),
    Alteration(
        'guidance weighs g and 1 - g', 'mossjax/models/flow/solver.py',
        'return (1 + guidance) * with_conditions - guidance * without',
        'return guidance * with_conditions + (1 - guidance) * without',
        ('tests/models/flow/test_solver.py',),
    ),
    Alteration(
        'the time grid is uniform', 'mossjax/models/flow/solver.py',
        'return np.float32(1) - np.cos(quarter)',
        'return quarter / np.float32(np.pi / 2)',
        ('tests/models/flow/test_solver.py',),
    ),
    Alteration(
        'epsilon 1e-5 in the norms of the conformer', 'mossjax/models/flow/encoder.py',
        'self.attention_norm = LayerNorm(d, eps=1e-12, rngs=rngs)',
        'self.attention_norm = LayerNorm(d, eps=1e-5, rngs=rngs)',
        ('tests/models/flow/test_encoder.py',),
    ),
    Alteration(
        'relative positions off by one', 'mossjax/models/flow/encoder.py',
        'flat[:, :, t - 1 : t - 1 + t * r]', 'flat[:, :, t : t + t * r]',
        ('tests/models/flow/test_encoder.py',),
    ),
)

TRAINING = (
    Alteration(
        'a resumed run reads its data from the beginning', 'mossjax/train/loop.py',
        'contextlib.closing(prefetch(read, done))', 'contextlib.closing(prefetch(read, 0))',
        ('tests/train/test_loop.py::'
         'test_killed_after_ten_steps_and_resumed_is_bit_equal_to_one_run',),
    ),
    Alteration(
        'parameters with one axis decay too', 'mossjax/train/optim.py',
        "wide = {path: len([a for a in names if a != 'layers']) > 1 for path, names in",
        'wide = {path: True for path, names in',
        ('tests/train/test_optim.py::test_only_matrices_decay',),
    ),
)

ALTERATIONS = (*LANGUAGE_MODEL, *TOKENIZER, *DECODER, *TRAINING)
