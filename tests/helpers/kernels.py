"""What a call launches: operators that compute or copy, counted as torch dispatches them."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

# fmt: off
VIEWS = {
    "view", "t", "transpose", "expand", "slice", "split", "split_with_sizes", "unsqueeze",
    "squeeze", "select", "detach", "_unsafe_view", "alias", "permute", "unbind",
    "as_strided", "_reshape_alias", "unfold", "lift_fresh", "empty", "empty_like",
    "new_empty", "empty_strided", "new_empty_strided", "resize_", "set_", "is_same_size",
    "promote_types", "_record_function_enter_new", "_record_function_exit",
}
# fmt: on
"""Operators that only look elsewhere, take memory or keep books: nothing runs on a device."""


class Kernels(TorchDispatchMode):
    """Counts the operators of forward, backward and optimiser by name; on every device alike.

    On a GPU an operator is at least one kernel; a reduction or a sort may be several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()
