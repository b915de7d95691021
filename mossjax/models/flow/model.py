"""Speech codes and a voice prompt -> mel. Upstream: `CausalMaskedDiffWithXvec`."""

from flax import nnx
import jax
import jax.numpy as jnp

from mossjax.models.flow import solver
from mossjax.models.flow.config import OFFLINE, Context, FlowConfig
from mossjax.models.flow.encoder import Encoder
from mossjax.models.flow.estimator import Estimator
from mossjax.nn.linear import Embedding, Linear
from mossjax.nn.param import normal
from mossjax.ops import attention as attention_ops


class FlowDecoder(nnx.Module):
    """Codes -> mu (conformer) -> mel (flow matching).

    Args:
      attend: the attention of the estimator, see `ops.attention`. The encoder adds a bias to its
        scores and therefore keeps the reference implementation.
      remat: wraps the scanned layers' bodies, e.g. `jax.checkpoint`.
    """

    def __init__(
        self, config: FlowConfig, *, attend=attention_ops.attention, remat=lambda f: f,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        self.embed = Embedding(
            config.vocab_size, config.input_size, init=normal(1.0), axes=('code', 'embed'),
            rngs=rngs,
        )  # fmt: skip
        self.speaker_proj = Linear(config.xvector_size, config.mels, axes=(None, 'mel'), rngs=rngs)
        self.encoder = Encoder(config, remat=remat, rngs=rngs)
        self.mu_proj = Linear(config.width, config.mels, axes=('embed', 'mel'), rngs=rngs)
        self.estimator = Estimator(config, attend=attend, remat=remat, rngs=rngs)

    def speaker(self, xvector: jax.Array) -> jax.Array:
        """(b, xvector_size) of any length -> (b, m). A zero vector gives the projection's bias."""
        length = jnp.linalg.norm(xvector, axis=-1, keepdims=True)
        return self.speaker_proj(xvector / jnp.maximum(length, 1e-12))

    def mu(
        self, codes: jax.Array, lengths: jax.Array, context: Context = OFFLINE,
        key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """(b, n) codes, (b,) lengths -> (b, ratio * (n - held), m). A key turns dropout on."""
        return self.mu_proj(self.encoder(self.embed(codes), lengths, context, key))

    def valid(self, codes: jax.Array, lengths: jax.Array, context: Context = OFFLINE) -> jax.Array:
        """(b, ratio * (n - held)) bool: the frames that exist."""
        frames = self.config.ratio * (codes.shape[1] - context.held)
        return jnp.arange(frames) < self.config.ratio * (lengths - context.held)[:, None]

    def velocity(self, context: Context):
        """The estimator under the context's mask: (x, valid, mu, t, speaker, cond) -> velocity."""
        chunk = None if context.chunk is None else self.config.ratio * context.chunk

        def run(x, valid, mu, t, speaker, cond):
            return self.estimator(x, valid, mu, t, speaker, cond, chunk=chunk)

        return run

    def __call__(
        self, codes: jax.Array, lengths: jax.Array, xvector: jax.Array, prompt_mel: jax.Array,
        noise: jax.Array, *, context: Context = OFFLINE, guidance: float | None = None,
        steps: int = solver.STEPS,
    ) -> jax.Array:  # fmt: skip
        """Codes to mel.

        Args:
          codes: (b, n) int32, a prompt's codes first, then those to speak. Ids below 0 count as 0.
          lengths: (b,) codes per row, prompt included.
          xvector: (b, xvector_size), zeros for no voice.
          prompt_mel: (b, ratio * prompt codes, m), the same prompt length in every row, may be 0.
          noise: (ratio * (n - held), m), `solver.noise`.
          guidance: the config's by default.
          steps: Euler steps.

        Returns:
          (b, ratio * (n - held), m) natural-log mel. Its first frames re-speak the prompt.
        """
        mu = self.mu(codes, lengths, context)
        valid = self.valid(codes, lengths, context)
        known = prompt_mel.shape[1]
        cond = jnp.pad(prompt_mel, ((0, 0), (0, mu.shape[1] - known), (0, 0)))
        guidance = self.config.guidance if guidance is None else guidance
        velocity = solver.guided(self.velocity(context), guidance)
        x = jnp.broadcast_to(noise.astype(mu.dtype), mu.shape)
        speaker = self.speaker(xvector)
        mel = solver.integrate(
            velocity, x, valid, mu, speaker, cond.astype(mu.dtype), steps=steps
        )
        return jnp.where(valid[..., None], mel, 0)
