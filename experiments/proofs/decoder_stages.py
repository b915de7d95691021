"""What lies between the inputs and outputs of the decoder's networks, for `decoder_vectors`."""

import jax
import jax.numpy as jnp
import numpy as np

from mossjax.models.flow import solver as euler
from mossjax.models.flow.config import OFFLINE
from mossjax.models.flow.estimator import embed_time
from mossjax.models.vocoder.hift import source as excitation
from mossjax.models.vocoder.hift import spectrum
from mossjax.ops.attention import Mask


def channels(x: jax.Array) -> jax.Array:
    """(b, t, c) -> (b, c, t), as torch has it."""
    return jnp.swapaxes(x, 1, 2)


def layer(stacked, i: int):
    """One layer of a `nn.param.stack`."""
    return jax.tree.map(lambda x: x[i], stacked)


def encoder(model, codes: np.ndarray, context) -> dict[str, jax.Array]:
    """The flow encoder's stages for one unpadded row."""
    e, x = model.encoder, model.embed(codes)
    n, lengths = codes.shape[1] - context.held, np.array([codes.shape[1]]) - context.held
    found = {'enc_embed': e.embed.norm(e.embed.linear(x))}
    x = e.lookahead(e.embed(x))[:, :n]
    found['enc_prelookahead'] = x
    mask = Mask(chunk=context.chunk, kv_valid=np.ones((1, n), bool))
    found['enc_block0'] = layer(e.blocks, 0)(x, mask)
    x = e._run(e.blocks, x, lengths, context.chunk, None)
    found['enc_blocks'] = x
    x = e.upsample(jnp.repeat(x, e.ratio, axis=1))
    found['enc_uplayer'] = channels(x)
    found['enc_up_embed'] = e.up_embed.norm(e.up_embed.linear(x))
    chunk = None if context.chunk is None else e.ratio * context.chunk
    x = e._run(e.up_blocks, e.up_embed(x), e.ratio * lengths, chunk, None)
    return found | {'enc_out': e.norm(x)}


def estimator(net, x, valid, mu, speaker, cond, t, *, chunk):
    """(stages of the velocity network at time t, its output)."""
    found = {'time_sin': embed_time(t, net.time_in.kernel.shape[0])}
    found['time_mlp'] = time = net.time_out(jax.nn.silu(net.time_in(found['time_sin'])))
    mask, exists = Mask(chunk=chunk, kv_valid=valid), valid[..., None].astype(x.dtype)
    speaker = jnp.broadcast_to(speaker[:, None], x.shape)
    h = jnp.concatenate([x, mu, speaker, cond], axis=-1)
    found['down_resnet_block1'] = channels(net.down.resnet.block1(h, exists))
    first = net.down.resnet(h, exists, time)
    found['down_resnet'] = channels(first)
    transformer = layer(net.down.transformers, 0)
    found['down_tf0_attn'] = transformer.attention(transformer.attention_norm(first), mask)
    found['down_tf0'] = transformer(first, mask)
    skip = net.down(h, exists, mask, time)
    h = net.down_conv(skip * exists)
    found['down_conv'] = channels(h)
    depth = net.mid.resnet.time.kernel.shape[0]
    for i in range(depth):
        stage = layer(net.mid, i)
        if i + 1 == depth:
            found['mid_last_resnet'] = channels(stage.resnet(h, exists, time))
        h = stage(h, exists, mask, time)
    found['mid_last_tf'] = h
    h = jnp.concatenate([h, skip], axis=-1)
    found['up_resnet'] = channels(net.up.resnet(h, exists, time))
    h = net.up_conv(net.up(h, exists, mask, time) * exists)
    found['up_conv'] = channels(h)
    found['final_block'] = channels(net.final_block(h, exists))
    return found, net(x, valid, mu, t, speaker[:, 0], cond, chunk=chunk)


def solver(model, io: dict) -> dict[str, np.ndarray]:
    """Times, and the path before steps 3 and 9."""
    times, sizes = euler.visits(euler.time_grid())
    found = {'t_span': euler.time_grid(), 'solver_t': times}
    velocity = euler.guided(model.velocity(OFFLINE), model.config.guidance)
    mu, cond = (np.swapaxes(io[name], 1, 2) for name in ('mu', 'cond'))

    @jax.jit
    def step(x, t, size):
        everything = np.ones(x.shape[:2], bool)
        return x + size * velocity(x, everything, mu, t[None], io['spk'], cond)

    x = np.swapaxes(io['x'], 1, 2)
    for i, (t, size) in enumerate(zip(times, sizes, strict=True)):
        if i in (3, 9):
            found[f'solver_x_step{i}'] = np.asarray(channels(x))
        x = step(x, t, size)
    return found


def vocoder(model, mel, source, f0, noise) -> dict[str, jax.Array]:
    """The generator's stages for one unpadded row."""
    c, t = model.config, mel.shape[1]
    sines = excitation.excitation(c, f0, noise)
    found = {'stage_sine': channels(sines)[:, :2880]}
    excited = spectrum.analysis(source, np.array([480 * t]), n_fft=c.n_fft, hop=c.hop)
    found['source_stft'] = channels(excited)
    x = model.pre(mel)
    found['stage_conv_pre'] = channels(x)
    valid = np.ones((1, t, 1), bool)
    for i, stage in enumerate((model.stage0, model.stage1, model.stage2)):
        up = stage.up(jax.nn.leaky_relu(x, c.slope))
        finer = np.ones((1, up.shape[1] + stage.last, 1), bool)
        down = stage.source_down(excited)
        resonant = stage.source_block(down, finer)
        found |= {f'stage_up{i}': channels(up), f'stage_sd{i}': channels(down)}
        if i == 0:
            found['stage_sr0'] = channels(resonant)
            found['stage_rb0'] = channels(stage.block0(up + resonant, finer))
        x, valid = stage(x, excited, valid, finer), finer
    found['stage_conv_post'] = channels(model.post(jax.nn.leaky_relu(x, 0.01)))
    return {k: v for k, v in found.items() if k not in ('stage_up2', 'stage_sd2')}


def speaker(model, features) -> dict[str, jax.Array]:
    """CAM++'s stages for one unpadded row."""
    from mossjax.models.speaker.model import _statistics

    valid = np.ones((1, features.shape[1], 1), bool)
    x = model.head(features, valid)
    found = {'head_first8': channels(x)}
    x = jax.nn.relu(model.tdnn_norm(model.tdnn(x)))
    found['tdnn'], valid = channels(x), np.ones((1, x.shape[1], 1), bool)
    grown = model.block0_0(x, valid)
    found['block1_layer1'] = channels(grown[..., x.shape[-1] :])
    for i, layers in enumerate(model.config.layers):
        for j in range(layers):
            x = getattr(model, f'block{i}_{j}')(x, valid)
        x = getattr(model, f'transit{i}')(jax.nn.relu(getattr(model, f'transit_norm{i}')(x)))
        if i == 0:
            found['transit1'] = channels(x)
    x = jax.nn.relu(model.out_norm(x))
    return found | {'out_nonlinear': channels(x), 'stats': _statistics(x, valid)}
