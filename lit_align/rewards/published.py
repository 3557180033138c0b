"""Published models and questions: loading, and refusing by name."""

import ast
from pathlib import Path

from torch import Tensor, nn

from lit_align.paths import fetch


def loaded(cls, pretrained: str | None, **options) -> nn.Module:
    """cls.from_pretrained, in eval mode and without gradient. ValueError if the weights lack a tensor or have one of
    another shape; those that the model has no place for are ignored."""
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = cls.from_pretrained(pretrained, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{pretrained or 'the checkpoint'} lacks {missing[0]}: it holds no {cls.__name__} of this size."
        )
    if wrong := sorted(info["mismatched_keys"]):
        name, found, needed = wrong[0]
        raise ValueError(f"{pretrained or 'the checkpoint'}: {name} is {tuple(found)}, and must be {tuple(needed)}.")
    return model.eval().requires_grad_(False)


def load_into(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """module.load_state_dict, in float32. ValueError names the first tensor that is missing, unknown or of another
    shape."""
    own = module.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise ValueError(f"{where} {'lacks' if name in own else 'has an unknown tensor'} {name}.")
        if own[name].shape != state[name].shape:
            found, needed = tuple(state[name].shape), tuple(own[name].shape)
            raise ValueError(f"{where}: {name} is {found}, and must be {needed}.")
    module.load_state_dict({name: value.float() for name, value in state.items()})
    module.eval().requires_grad_(False)


def published(file: str, part: str) -> str:
    """The one string of a published Python file that contains `part`, with `{name}` where it is filled in. The file is
    parsed, never run; a local path, or an https address."""
    found, inner = [], set()
    for node in ast.walk(ast.parse(Path(fetch(file)).read_text())):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(value) for value in node.values}
            found.append(
                "".join(v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append(node.value)
    found = list(dict.fromkeys(text for text in found if part in text))
    if len(found) != 1:
        raise ValueError(
            f"{file} has {len(found)} strings that contain {part!r}; it must be the published file, with one."
        )
    return found[0]
