"""Which parameters of the language model are matrices, and what a matmul with them sums over.

Paths are slash-joined keys of the parameter dict. Norm scales are no matrices.
"""

import re

# Pattern of a path -> axes that are summed over, a leading layer axis not counted.
_SUMMED = {
    r'(trunk|text_branch|audio_branch)/attn/[qkv]': (0,),
    r'(trunk|text_branch|audio_branch)/attn/o': (0, 1),
    r'(trunk|text_branch|audio_branch)/mlp/(gate|up|down)': (0,),
    r'(text|audio)_head/kernel': (0,),
    r'(text|audio)_embed/table': (1,),
}


def layer_axes(path: str) -> int:
    """Leading layer axes of a parameter: 1 in a stack, 0 elsewhere."""
    return 1 if path.startswith(('trunk/', 'text_branch/', 'audio_branch/')) else 0


def summed_axes(path: str) -> tuple[int, ...] | None:
    """Axes of a parameter, layers included, that are summed over; None for what is no matrix."""
    for pattern, axes in _SUMMED.items():
        if re.fullmatch(pattern, path):
            return tuple(axis + layer_axes(path) for axis in axes)
    return None


def matrix(path: str) -> tuple[tuple[int, ...] | None, int]:
    """(summed axes or None, leading layer axes): what `nn.lora` asks of a parameter."""
    return summed_axes(path), layer_axes(path)
