"""Whether numbers can be read off tensors."""

from __future__ import annotations

import torch
from torch._C._functorch import TransformType, get_interpreter_stack


def values_hidden() -> bool:
    """Return whether no number can be read off a tensor: inside of compiled code and of `torch.func.vmap`.

    What depends on a number, such as a shape, an error or the choice of a path, has to do without it there.
    """
    if torch.compiler.is_compiling():
        return True
    # Any level of nested transforms: the gradient of a mapped function hides its values as well.
    return any(transform.key() == TransformType.Vmap for transform in get_interpreter_stack() or ())
