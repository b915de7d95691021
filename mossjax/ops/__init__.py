"""Pure functions on arrays: no parameters, no mesh, no flax.

Dimension letters used in einsum strings and shape comments, here and in the whole project:

    b batch        t query time   s key time     d embed (model width)
    n query heads  k kv heads     g query heads per kv head (n = k * g)
    h head dim     f feed-forward v vocabulary   l layers
    m mel bins     c channels     w waveform samples   r rows of a packed batch
"""
