"""Every field of the flow decoder's configuration counts."""

import dataclasses

import jax
import jax.numpy as jnp

from mossjax.convert.codec_flow import flow_network
from mossjax.models.flow.config import FlowConfig
from mossjax.models.flow.loss import flow_loss


def test_every_field_changes_the_program(flow_config):
    """A field that nothing reads would let a checkpoint run wrong without a word."""
    changes = {
        'dropout': 0.2, 'sigma_min': 1e-2, 'condition_dropout': 0.3, 'guidance': 0.6,
        'width': 128, 'mels': 40,
    }  # fmt: skip
    base, shapes = _program(flow_config), flow_network(flow_config).shapes
    for field in dataclasses.fields(FlowConfig):
        value = changes.get(field.name, 2 * getattr(flow_config, field.name))
        changed = dataclasses.replace(flow_config, **{field.name: value})
        if flow_network(changed).shapes == shapes:
            assert _program(changed) != base, f'{field.name} changes nothing'


def _program(config: FlowConfig) -> str:
    """Streaming inference and training loss as traced: constants included."""
    net = flow_network(config)
    context = config.context(streaming=True, finalize=False)
    b, n = 1, 12
    codes = jax.ShapeDtypeStruct((b, n), jnp.int32)
    lengths = jax.ShapeDtypeStruct((b,), jnp.int32)
    xvector = jnp.zeros((b, config.xvector_size))

    def everything(params, codes, lengths):
        model = net.bind(params)
        prompt = jnp.zeros((b, 0, config.mels))
        noise = jnp.zeros((config.ratio * (n - context.held), config.mels))
        mel = model(codes, lengths, xvector, prompt, noise, context=context)
        full = jnp.zeros((b, config.ratio * n, config.mels))
        batch = {'codes': codes, 'code_lengths': lengths, 'mel': full, 'xvector': xvector}
        loss = flow_loss(model, batch, jax.random.key(0), context=config.context(
            streaming=True, finalize=True))  # fmt: skip
        return mel, loss

    return str(jax.make_jaxpr(everything)(net.shapes, codes, lengths))


