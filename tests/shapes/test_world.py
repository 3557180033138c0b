"""What the Shapes world may import."""

import ast
from pathlib import Path

import lit_align.shapes


def imported(file: Path) -> set[str]:
    """The modules that a file imports anywhere, relative imports written out."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_world_does_not_import_the_commands_that_made_its_files():
    files = sorted(Path(lit_align.shapes.__file__).parent.glob("*.py"))
    names = {file.stem: imported(file) for file in files}
    assert len(names) > 8 and any("lit_align.shapes.scenes" in module for module in names["judge"])
    assert not {stem for stem, modules in names.items() if any(m.startswith("lit_align.shapes.make") for m in modules)}
