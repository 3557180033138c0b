"""A network without weights in the place of a real one: it gives numbers of the right shape, and says what it took."""

from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

from lit_align.weightless.autocast import like_cuda
from lit_align.weightless.ledger import Ledger, Peak, fake_mode


@dataclass
class Record:
    """What a call took: bytes at the peak of forward and of backward, bytes kept between the two, and operations."""

    outputs: list  # ("tensor", shape, dtype, requires_grad), or ("other", value)
    tree: Any
    kept: int
    forward: dict[str, Peak]
    backward: dict[str, Peak]
    forward_flops: int
    backward_flops: int


class StandIn(nn.Module):
    """What a module becomes by `stand_in`. A first call with inputs of some shapes runs the network on tensors without
    values and keeps a Record; that call and all later ones are made of the record."""

    purpose = "activations"  # of what it allocates

    def __call__(self, *args, **kwargs):
        ledger = next((m for m in reversed(_get_current_dispatch_mode_stack()) if isinstance(m, Ledger)), None)
        if ledger is None:
            raise RuntimeError("a network without weights runs within a Ledger only.")
        if ledger.measures:  # called by another one
            return super().__call__(*args, **kwargs)
        leaves, tree = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (type(self).__name__, *self.state(), *map(spec, leaves), str(tree), torch.is_grad_enabled())
        key += (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        if key not in ledger.records:
            with ledger.pause():
                ledger.records[key] = self.measure(ledger, leaves, tree)
        record = ledger.records[key]
        parameters = [p for p in self.parameters() if p.requires_grad] if record.backward else []
        anchor = torch.empty(0, requires_grad=True) if parameters else None
        made = Replay.apply(record, ledger, self.purpose, parameters, anchor, *tensors)
        made = iter(made)
        outputs = [next(made) if kind == "tensor" else value for kind, value, *_ in record.outputs]
        return tree_unflatten(outputs, record.tree)

    def state(self) -> tuple:
        """What the cost of a call depends on beside its inputs."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        parameters = list(self.parameters())
        adapters = {(m.disable_adapters, *m.active_adapters) for m in self.modules() if isinstance(m, BaseTunerLayer)}
        recomputed = any(getattr(m, "gradient_checkpointing", False) for m in self.modules())
        trained = [p for p in parameters if p.requires_grad]
        sizes = sum(p.numel() for p in parameters), sum(p.numel() for p in trained), {p.dtype for p in parameters}
        return *map(str, sizes), str(sorted(adapters)), recomputed

    def measure(self, outer: Ledger, leaves: list, tree) -> Record:
        """Runs forward, and backward if there is one, on tensors without values."""
        mode, ledger = fake_mode(), Ledger(outer.scenarios)
        ledger.measures = True
        ledger.purpose = self.purpose
        parameters = [p for p in self.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        label = lambda p: ledger.add(p.grad, "gradients")
        hooks = [p.register_post_accumulate_grad_hook(label) for p in parameters if p.grad is None]
        for p in parameters:
            if p.grad is not None:
                p.grad = empty_like(p)
        fakes = [fake(mode, leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(fakes, tree)
        with ExitStack() as stack:
            stack.enter_context(like_cuda(self) if outer.like_cuda else nullcontext())
            stack.enter_context(ledger)
            out = super().__call__(*args, **kwargs)
            outputs, out_tree = tree_flatten(out)
            del out
            forward, kept, flops = ledger.peaks, ledger.live[self.purpose], ledger.flops
            graded = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
            ledger.reset()
            if graded:
                torch.autograd.backward(graded, [torch.empty_like(o) for o in graded])
            backward = ledger.peaks if graded else {}
        for hook in hooks:
            hook.remove()
        for p, grad in zip(parameters, before):
            p.grad = grad
        return Record([described(o) for o in outputs], out_tree, kept, forward, backward, flops, ledger.flops)

    def _apply(self, fn, recurse=True):
        """Moves and converts tensors without values, of which torch's own method cannot exchange all."""
        for module in self.modules():
            for name, p in module._parameters.items():
                if p is not None and (new := fn(p.detach())).dtype != p.dtype:
                    module._parameters[name] = nn.Parameter(new, p.requires_grad)
            for name, b in module._buffers.items():
                module._buffers[name] = b if b is None else fn(b)
        return self

    def add_adapter(self, *args, **kwargs):
        """Adds a LoRA adapter, and takes its values."""
        super().add_adapter(*args, **kwargs)
        without_values(self)


class Replay(torch.autograd.Function):
    """Makes the outputs of a call of its record, and counts what it takes."""

    @staticmethod
    def forward(ctx, record, ledger, purpose, parameters, anchor, *tensors):
        ctx.record, ctx.ledger, ctx.purpose, ctx.parameters = record, ledger, purpose, parameters
        ledger.spike(record.forward, Counter())
        ledger.flops += record.forward_flops
        ctx.inputs = [(t.shape, t.dtype, t.is_floating_point()) for t in tensors]
        if record.backward and record.kept:
            with fake_mode():
                kept = torch.empty(record.kept, dtype=torch.uint8)
            ledger.add(kept, purpose)
            ctx.save_for_backward(kept)
        made = tuple(value(o, tensors) for o in record.outputs if o[0] == "tensor")
        ctx.mark_non_differentiable(*(m for m in made if not m.is_floating_point()))
        return made

    @staticmethod
    def backward(ctx, *grads):
        record, ledger = ctx.record, ctx.ledger
        less = Counter({ctx.purpose: sum(t.nbytes for t in ctx.saved_tensors)})
        ledger.spike(record.backward, less)
        ledger.flops += record.backward_flops
        for p in ctx.parameters:
            if p.grad is None:
                p.grad = empty_like(p)
                ledger.add(p.grad, "gradients")
        given = [torch.full(shape, 1e-3, dtype=dtype) if floats else None for shape, dtype, floats in ctx.inputs]
        return None, None, None, None, torch.empty(0) if ctx.needs_input_grad[4] else None, *given


def stand_in(module: nn.Module, purpose: str = "activations") -> nn.Module:
    """The module, whose tensors have no values, as a StandIn: its class is a subclass of what it was."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (StandIn, kind), {"__module__": kind.__module__})
    module.purpose = purpose
    return module


def without_values(module: nn.Module) -> nn.Module:
    """Takes the values from a network's tensors."""
    mode = fake_mode()
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and not isinstance(p, FakeTensor):
                part._parameters[name] = nn.Parameter(mode.from_tensor(p.detach()), p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = b if b is None or isinstance(b, FakeTensor) else mode.from_tensor(b)
    return module


def empty_like(p: Tensor) -> Tensor:
    with fake_mode():
        return torch.empty(p.shape, dtype=p.dtype)


def fake(mode, tensor: Tensor) -> Tensor:
    made = mode.from_tensor(tensor.detach())
    return made.requires_grad_(tensor.requires_grad)


def spec(leaf) -> tuple | str:
    return (tuple(leaf.shape), leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else repr(leaf)[:200]


def described(leaf) -> tuple:
    if isinstance(leaf, Tensor):
        return "tensor", tuple(leaf.shape), leaf.dtype, leaf.requires_grad
    return "other", leaf


def value(output: tuple, tensors: tuple[Tensor, ...]) -> Tensor:
    """Numbers for an output: those of an input of its shape, so that the same row gives the same prediction whatever
    its batch; else random ones, the same every time."""
    _, shape, dtype, _ = output
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    for tensor in tensors:
        if tensor.shape == shape and tensor.is_floating_point():
            return tensor.detach().to(dtype, copy=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
