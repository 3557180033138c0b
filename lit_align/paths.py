"""Where the project's own files lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find(path: str) -> str:
    """A path as it is when it exists; else the same path under the project's folder when that exists (so that configs
    name `checkpoints/shapes-sd` from any working directory); else as it is, a hub id perhaps."""
    inside = ROOT / path
    return str(inside) if not Path(path).exists() and inside.exists() else path
