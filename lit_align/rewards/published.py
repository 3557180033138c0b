"""Published models and questions: loading, and refusing by name."""

import ast
from pathlib import Path

from torch import nn

from lit_align.paths import fetch
from lit_align.rewards.weights import check


def loaded(cls, pretrained: str | None, file: str, **options) -> nn.Module:
    """cls.from_pretrained, in eval mode and without gradient. ValueError if the weights lack a tensor or have one in
    another shape; those that the model has no place for are left, and transformers says so."""
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = cls.from_pretrained(pretrained, **options)
    check(file, type(model).__name__, report["missing_keys"], (), [name for name, *_ in report["mismatched_keys"]])
    return model.eval().requires_grad_(False)


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
