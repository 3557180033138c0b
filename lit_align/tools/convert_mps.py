"""The released MPS as a file of tensors. `python -m lit_align convert_mps --source MPS_overall_checkpoint.pth`"""

import collections
import pickle
from types import ModuleType

import torch
from torch import Tensor

TENSORS = {  # what a file of tensors needs; everything else becomes a Placeholder
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): torch._utils._rebuild_parameter_with_state,
    ("__builtin__", "set"): set,  # as pickles name it
    ("builtins", "set"): set,
}


class Placeholder:
    """Stands for a pickled object of any class, whose code is not run: it keeps the object's attributes."""

    dump_patches = False  # asked by torch.load

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})

    def __setitem__(self, key, value) -> None:
        pass

    def extend(self, values) -> None:
        pass

    append = add = extend


class Unpickler(pickle.Unpickler):
    """Imports nothing that a file names: tensors are built, and all else is a Placeholder."""

    def find_class(self, module: str, name: str):
        if (module, name) in TENSORS:
            return TENSORS[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return Placeholder


def tensors(module, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and persistent buffers of a pickled nn.Module, by name."""
    kept = {**module._parameters, **module._buffers}
    temporary = getattr(module, "_non_persistent_buffers_set", set())
    found = {prefix + name: x.detach() for name, x in kept.items() if x is not None and name not in temporary}
    for name, child in module._modules.items():
        if child is not None:
            found |= tensors(child, f"{prefix}{name}.")
    return found


def convert_mps(source: str, out: str = "mps.safetensors") -> None:
    """Converts the released MPS, a pickled module, to a file that the reward MPS reads.

    Unpickling a module runs whatever code its file names. This command does not: it takes the tensors and runs none of
    it. Do not load such a file by torch.load(..., weights_only=False).

    Raises ValueError if the file holds no such module.

    Args:
        source: MPS_overall_checkpoint.pth, linked by github.com/Kwai-Kolors/MPS.
        out: the file to write, .safetensors.
    """
    from safetensors.torch import save_file

    restricted = ModuleType("restricted_pickle")
    restricted.Unpickler, restricted.load = Unpickler, lambda file, **kwargs: Unpickler(file, **kwargs).load()
    module = torch.load(source, "cpu", pickle_module=restricted, weights_only=False)
    found = tensors(module) if isinstance(module, Placeholder) and "_modules" in vars(module) else {}
    kept = {name: x.contiguous() for name, x in found.items() if not name.endswith("position_ids")}
    if not all(any(name.startswith(part) for name in kept) for part in ("model.", "cross_model.")):
        raise ValueError(f"{source} holds no MPS: give MPS_overall_checkpoint.pth, a pickled module.")
    save_file(kept, out)
    print(f"wrote {len(kept)} tensors to {out}: --model.reward MPS --model.reward.checkpoint {out}")
