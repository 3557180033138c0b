"""Counts the bytes of the tensors that are alive, by purpose, and floating-point operations."""

import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ATEN = torch.ops.aten
FLOPS: dict[Any, Callable] = flop_registry | {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(
        grad.shape, q.shape, k.shape, v.shape
    ),
}
Records = dict  # (network, shapes ...) -> what a call took: see `StandIn`
Scenario = Callable[[Counter], Counter]  # bytes by purpose -> those of one device


@cache
def fake_mode() -> FakeTensorMode:
    """The one mode whose tensors have shape, type and device, but no values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@cache
def records(like_cuda: bool, devices: int) -> Records:
    """What calls of networks have taken so far in this process."""
    return {}


class Peak:
    """The most bytes that a scenario has needed: `total`, `parts` by purpose, and `live`, what was alive then."""

    def __init__(self):
        self.total, self.parts, self.live = 0.0, Counter(), Counter()

    def see(self, needs: Scenario, live: Counter) -> None:
        parts = needs(live)
        if (total := sum(parts.values())) > self.total:
            self.total, self.parts, self.live = total, Counter(parts), Counter(live)


class Ledger(TorchDispatchMode):
    """Within it, every new tensor is counted until it is freed, with and without values.

    A number that is read out of a tensor without values is 1 or True.

    Args:
        scenarios: for each the peak is kept; `plain` is all that is alive.
        records: what calls of networks took, by network and shapes: see `StandIn`. Ledgers may share it.
        like_cuda: networks run by CUDA's rules of autocast, not by the CPU's.
    """

    def __init__(
        self, scenarios: dict[str, Scenario] | None = None, records: Records | None = None, like_cuda: bool = False
    ):
        super().__init__()
        self.like_cuda = like_cuda
        self.scenarios = {"plain": lambda live: live} | (scenarios or {})
        self.records = {} if records is None else records
        self.live: Counter[str] = Counter()  # purpose -> bytes
        self.flops, self.purpose = 0, "samples"
        self.paused = self.measures = False  # whether it counts nothing; whether it measures one call of a network
        self._storages: dict[int, list] = {}  # storage -> [purpose, bytes]
        self.reset()

    def reset(self) -> None:
        """Forgets the peaks and the operations so far."""
        self.flops, self.peaks = 0, {name: Peak() for name in self.scenarios}
        self.look()

    def look(self) -> None:
        """Compares what is alive with the peaks."""
        for name, needs in self.scenarios.items():
            self.peaks[name].see(needs, self.live)

    def spike(self, peaks: dict[str, Peak], less: Counter) -> None:
        """Counts what a call needed at its peaks, of which `less` is alive already."""
        for name, needs in self.scenarios.items():
            at_peak = self.live + peaks[name].live
            at_peak.subtract(less)
            self.peaks[name].see(needs, at_peak)

    def add(self, tensor: Tensor, purpose: str) -> None:
        """Counts a tensor for a purpose, until it is freed; if it is counted already, it changes its purpose."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            entry = self._storages[key]
            self.live[entry[0]] -= entry[1]
            self.live[purpose] += entry[1]
            entry[0] = purpose
            return
        self._storages[key] = [purpose, storage.nbytes()]
        self.live[purpose] += storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.look()

    def _free(self, key: int) -> None:
        purpose, size = self._storages.pop(key)
        self.live[purpose] -= size

    @contextmanager
    def pause(self):
        """Inside, nothing is counted."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        out = func(*args, **kwargs)
        if self.paused:
            return out
        if formula := FLOPS.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        known = None
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage()._cdata in self._storages:
                continue
            if known is None:
                known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            if tensor.untyped_storage()._cdata not in known:  # else it is a view, or what was changed in place
                self.add(tensor, self.purpose)
        return out
