"""The language model against Transformers' Qwen3 layers, wired as the specification says."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3 import modeling_qwen3 as hf

from mossjax.convert import kinds, peft, rules
from mossjax.convert.directories import save_lm
from mossjax.convert.placement import open_lm
from mossjax.convert.qwen3 import open_start, text_name
from mossjax.convert.reference import speech_model
from mossjax.convert.transfer import convert
from mossjax.models.lm.cache import Cache
from mossjax.models.lm.matrices import matrix
from mossjax.models.lm.model import network
from mossjax.nn.lora import Lora, adapt, attach
from mossjax.ops import norms, rope
from mossjax.ops.attention import Mask
from mossjax.ops.losses import cross_entropy
from tests.tiny_lm import SPEECH, close, start_params, tiny_config, tiny_grid, tiny_params


def qwen_config(config, **changes) -> Qwen3Config:
    fields = {
        name: getattr(config, name)
        for name in (
            'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
            'num_attention_heads', 'num_key_value_heads', 'head_dim', 'rms_norm_eps',
            'max_position_embeddings',
        )
    }  # fmt: skip
    theta = {'rope_type': 'default', 'rope_theta': config.rope_theta}
    qwen = Qwen3Config(
        **{**fields, 'tie_word_embeddings': False, 'rope_parameters': theta, **changes}
    )
    qwen._attn_implementation = 'eager'
    return qwen


def lively_reference(config):
    """The reference with weights large enough that every layer matters."""
    model = speech_model(torch, hf, config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.normal_(1.0 if 'norm' in name else 0.0, 0.25, generator=generator)
    return model


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """(config, torch reference, our jitted forward and extend, parameters).

    The weights travel through a real directory.
    """
    from safetensors.torch import save_file

    config = tiny_config()
    reference = lively_reference(config)
    directory = tmp_path_factory.mktemp('reference')
    save_file(reference.state_dict(), directory / 'model.safetensors', metadata={'format': 'pt'})
    (directory / 'config.json').write_text(json.dumps(config.to_hf()))
    config, params = open_lm(directory)
    net = network(config)

    def extend(params, rows, count, cache):
        model = net.bind(params)
        hidden, cache = model.extend(rows, count, cache)
        return model.logits(hidden), cache

    return config, reference, forward_of(net), jax.jit(extend), params


def forward_of(net):
    return jax.jit(lambda params, *args: net.bind(params)(*args))


def expect(pair, grid):
    return [x.numpy() for x in pair[1](torch.from_numpy(np.asarray(grid, np.int64)))]


def test_full_forward(pair):
    config, _, forward, _, params = pair
    grid = tiny_grid(config, 2, 40)
    positions = np.broadcast_to(np.arange(40), (2, 40))
    got = forward(params, grid, positions, Mask(causal=True))
    for ours, theirs in zip(got, expect(pair, grid), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize('chunks', [[1] * 12, [5, 4, 3], [12]], ids=['steps', 'chunks', 'one'])
def test_cached_forward(pair, chunks):
    config, _, _, extend, params = pair
    grid, cache, got, start = tiny_grid(config, 2, 12), Cache.empty(config, 2, 15, 'float32'), [], 0
    for n in chunks:
        rows = grid[:, start : start + n]
        logits, cache = extend(params, rows, np.array([n, n]), cache)
        got.append(logits)
        start += n
    np.testing.assert_array_equal(cache.trunk.length, [12, 12])
    for i, theirs in enumerate(expect(pair, grid)):
        close(np.concatenate([np.asarray(g[i]) for g in got], axis=1), theirs)


def left_padded(config, lengths, t):
    """(grids without padding, padded grid, valid)."""
    grids = [tiny_grid(config, 1, n, seed=n)[0] for n in lengths]
    padded = np.stack([np.concatenate([np.full((t - len(g), 2), 5), g]) for g in grids])
    return grids, padded.astype(np.int32), np.arange(t) >= t - np.asarray(lengths)[:, None]


def test_left_padding_in_a_full_forward_changes_nothing(pair):
    config, _, forward, _, params = pair
    grids, padded, valid = left_padded(config, (9, 4), 9)
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    mask = Mask(causal=True, kv_valid=valid)
    got = forward(params, padded, positions, mask)
    for i, grid in enumerate(grids):
        for ours, theirs in zip(got, expect(pair, grid[None]), strict=True):
            assert np.isfinite(ours).all()
            close(ours[i, -len(grid) :], theirs[0])


def test_padding_in_a_cache_changes_nothing(pair):
    """Two lanes read in pieces of up to 4 rows, padded to 4: positions count real rows."""
    config, _, _, extend, params = pair
    grids = [tiny_grid(config, 1, n, seed=n)[0] for n in (9, 6)]
    cuts = ((0, 4, 8, 9), (0, 3, 3, 6))  # the second goes on after a piece that was not full
    cache = Cache.empty(config, 2, 15, 'float32', spare=4)
    found = [([], []), ([], [])]
    for step in range(3):
        rows, count = np.full((2, 4, 2), 5, np.int32), np.zeros(2, np.int32)
        for i, grid in enumerate(grids):
            piece = grid[cuts[i][step] : cuts[i][step + 1]]
            rows[i, : len(piece)], count[i] = piece, len(piece)
        logits, cache = extend(params, rows, count, cache)
        assert all(np.isfinite(x).all() for x in logits)
        for i, channel in np.ndindex(2, 2):
            found[i][channel].append(np.asarray(logits[channel][i, : count[i]]))
    for i, channel in np.ndindex(2, 2):
        want = expect(pair, grids[i][None])[channel][0]
        close(np.concatenate(found[i][channel]), want)


def test_bfloat16_is_as_exact_as_the_reference(pair):
    """Against float32, our bfloat16 forward errs no more than torch's own, plus a tenth."""
    config, reference, forward, _, params = pair
    grid = tiny_grid(config, 2, 40)
    exact = expect(pair, grid)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    positions = np.broadcast_to(np.arange(40), (2, 40))
    ours = forward(half, grid, positions, Mask(causal=True))
    theirs = copy.deepcopy(reference).to(torch.bfloat16)(torch.from_numpy(grid.astype(np.int64)))
    theirs = [x.float().numpy() for x in theirs]
    for got, torch_got, want in zip(ours, theirs, exact, strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.sqrt(np.mean((np.asarray(got, np.float32) - want) ** 2))
        allowed = np.sqrt(np.mean((torch_got - want) ** 2))
        assert error <= 1.1 * allowed


def test_rms_norm_rounds_like_qwen3_in_bfloat16(rng):
    x, scale = rng.normal(size=(64, 96)) * 3, 1 + 0.3 * rng.normal(size=96)
    norm = hf.Qwen3RMSNorm(96, 1e-6).to(torch.bfloat16)
    norm.weight.data = torch.from_numpy(scale).to(torch.bfloat16)
    want = norm(torch.from_numpy(x).to(torch.bfloat16)).detach().float().numpy()
    args = jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale, jnp.bfloat16)
    got = jax.jit(lambda x, w: norms.rms_norm(x, w, eps=1e-6))(*args)
    np.testing.assert_array_equal(np.asarray(got, np.float32), want)


@pytest.mark.parametrize('theta', [1e4, 1e6, 5e6])
def test_rope_table_and_rotation(theta, rng):
    config = tiny_config(head_dim=128, rope_theta=theta)
    rotary = hf.Qwen3RotaryEmbedding(qwen_config(config))
    table = rope.frequencies(128, theta)
    want = rotary.inv_freq.numpy()
    assert table.dtype == np.float32
    # torch's vectorised float32 power is itself off by one unit in single places.
    assert np.abs(table.view(np.int32) - want.view(np.int32)).max() <= 1
    x = rng.normal(size=(1, 3000, 1, 128)).astype(np.float32)
    positions = np.arange(3000)[None]
    cos, sin = rotary(torch.from_numpy(x), torch.from_numpy(positions))
    turned, _ = hf.apply_rotary_pos_emb(*[torch.from_numpy(x)] * 2, cos, sin, unsqueeze_dim=2)
    # From one table: a unit in a frequency near 1 would turn position 3000 by 2e-4.
    got = rope.rotate(jnp.asarray(x), *rope.rotation(positions, want, jnp.float32))
    close(got, turned.numpy())


@pytest.mark.parametrize('tied', [False, True])
def test_text_side_equals_the_qwen3_it_started_from(tied, tmp_path):
    """Through real directories: Qwen3 saved by Transformers, ours saved and opened again."""
    config = tiny_config(vocab_size=64)
    torch.manual_seed(0)
    qwen = qwen_config(config, vocab_size=80, tie_word_embeddings=tied)
    reference = Qwen3ForCausalLM(qwen).eval()
    for name, weight in reference.named_parameters():
        weight.data.normal_(1.0 if 'norm' in name else 0.0, 0.25)
    reference.save_pretrained(tmp_path / 'qwen')
    params = start_params(open_start(tmp_path / 'qwen', config, jax.random.key(0)), config)
    save_lm(tmp_path / 'ours', config, params)
    config, params = open_lm(tmp_path / 'ours')
    text = np.random.default_rng(0).integers(0, SPEECH, (2, 20))
    grid = np.stack([text, np.zeros_like(text)], axis=-1)
    positions = np.broadcast_to(np.arange(20), (2, 20))
    got = forward_of(network(config))(params, grid, positions, Mask(causal=True))
    with torch.no_grad():
        want = reference(torch.from_numpy(text)).logits.numpy()
    close(got.text, want[..., :64])


def test_converted_qwen3_on_both_roads(tmp_path):
    """Qwen3 -> Orbax -> ours, and -> Hugging Face -> Transformers: the same logits."""
    config = tiny_config(vocab_size=64)
    torch.manual_seed(0)
    reference = Qwen3ForCausalLM(qwen_config(config, vocab_size=64)).eval()
    for name, weight in reference.named_parameters():
        weight.data.normal_(1.0 if 'norm' in name else 0.0, 0.25)
    reference.save_pretrained(tmp_path / 'qwen')
    speech = ('audio_vocab_size', 'num_modality_layers', 'num_shared_layers', 'eosp_token_id',
              'modality_pad_token_id', 'sosp_token_id', 'audio_pad_token_id', 'eos_token_id')
    changes = {name: getattr(config, name) for name in speech}
    convert(kinds.open_source(tmp_path / 'qwen', changes), tmp_path / 'orbax')
    convert(kinds.text_side(kinds.open_source(tmp_path / 'orbax')), tmp_path / 'back')
    text = np.random.default_rng(0).integers(0, SPEECH, (2, 20))
    with torch.no_grad():
        want = reference(torch.from_numpy(text)).logits.numpy()
        again = AutoModelForCausalLM.from_pretrained(tmp_path / 'back').eval()
        assert type(again) is Qwen3ForCausalLM
        close(again(torch.from_numpy(text)).logits.numpy(), want)
    made, params = open_lm(tmp_path / 'orbax')
    grid = np.stack([text, np.zeros_like(text)], axis=-1)
    positions = np.broadcast_to(np.arange(20), (2, 20))
    close(forward_of(network(made))(params, grid, positions, Mask(causal=True)).text, want)


def test_peft_loads_the_adapters_of_the_text_side(tmp_path, rng):
    """Our adapters over Transformers' Qwen3 by PEFT itself: the logits of our adapted model."""
    import peft as reference_peft

    config = tiny_config()
    params = tiny_params(config)
    lora = Lora(rank=3, alpha=6.0, targets=(r'.*/attn/[qkvo]', r'.*/mlp/.*'))
    shapes = adapt(network(config), lora, matrix).shapes['lora']
    adapters = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), shapes)
    save_lm(tmp_path / 'ours', config, params)
    convert(kinds.text_side(kinds.open_source(tmp_path / 'ours')), tmp_path / 'text')
    peft.save(
        tmp_path / 'adapter', peft.Adapters(lora, rules.flatten(adapters)),
        lambda name: text_name(name, config),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'text')
    model = reference_peft.PeftModel.from_pretrained(model, tmp_path / 'adapter').eval()
    text = rng.integers(0, SPEECH, (2, 20))
    with torch.no_grad():
        want = model(torch.from_numpy(text)).logits.numpy()
        plain = model.disable_adapter()
        with plain:
            assert np.abs(model(torch.from_numpy(text)).logits.numpy() - want).max() > 0.1
    grid = np.stack([text, np.zeros_like(text)], axis=-1)
    positions = np.broadcast_to(np.arange(20), (2, 20))
    forward = forward_of(network(config))
    got = forward(attach(params, adapters, lora), grid, positions, Mask(causal=True))
    close(got.text, want)


def test_cross_entropy_and_gradients(rng):
    hidden, head = rng.normal(size=(37, 8)), rng.normal(size=(8, 11))
    labels = rng.integers(0, 11, 37)
    labels[::5] = -100
    tensors = [torch.tensor(x, requires_grad=True) for x in (hidden, head)]
    loss = torch.nn.functional.cross_entropy(
        tensors[0] @ tensors[1], torch.tensor(labels), reduction='sum'
    )
    loss.backward()

    def ours(hidden, head):
        return cross_entropy(hidden, head, labels, chunk=10).loss

    args = jnp.float32(hidden), jnp.float32(head)
    close(ours(*args), loss.item(), 1e-6)
    for got, tensor in zip(jax.grad(ours, (0, 1))(*args), tensors, strict=True):
        close(got, tensor.grad.numpy())
