"""Modules that `torch.fx` takes as they are."""

from __future__ import annotations

from typing import Any, cast

from torch import fx, nn


class Leaf(nn.Module):
    """A module that is one node of the graph that `torch.fx.symbolic_trace` makes of a model, as those of torch are.

    What it does depends on the numbers in its inputs, which a symbolic trace has none of.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, or enter it into the graph that is being made."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, fx.Proxy):
                tracer = cast(fx.Tracer, value.tracer)
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return super().__call__(*args, **kwargs)
