"""Normalisation: float32 inside, the input's dtype outside."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """x / rms(x) over the last axis, rounded to x.dtype **before** the scale is applied.

    The order of rounding and scaling is Qwen3's (transformers `Qwen3RMSNorm`); in bfloat16 it
    changes the last bit, in float32 it is immaterial.
    """
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse).astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float) -> jax.Array:
    """(x - mean) / std over the last axis, then scale and bias, all in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * inverse * scale + bias).astype(x.dtype)
