"""Where the project's own files lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find(path: str) -> str:
    """A path as it is when it exists; else the same path under the project's folder when that exists (so that configs
    name `checkpoints/shapes-sd` from any working directory); else as it is, a hub id perhaps."""
    inside = ROOT / path
    return str(inside) if not Path(path).exists() and inside.exists() else path


def fetch(file: str) -> str:
    """A local file, or `<owner>/<name>/<file>` downloaded from the hub."""
    where = find(file)
    if Path(where).is_file():
        return where
    from huggingface_hub import hf_hub_download

    try:
        owner, name, inside = file.split("/", 2)
        return hf_hub_download(f"{owner}/{name}", inside)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is neither a file nor <owner>/<name>/<file> on a hub that can be reached.") from error
