"""Alignment of diffusion models as PyTorch Lightning modules."""

from pathlib import Path

# The folder `callbacks/` beside this package is imported as lit_align.callbacks: a user's own `callbacks/` in the
# working directory then cannot hide it. A wheel carries it inside this package. A clone, and an editable install of
# one, find it by the repository's root in the package's search path.
if not (Path(__file__).parent / "callbacks").is_dir():
    __path__.append(str(Path(__file__).resolve().parents[1]))
