"""Where the project's own files lie."""

import os
import socket
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent  # a wheel carries configs/ inside the package
SHIPPED = (  # in a clone's checkpoints/
    "shapes-sd",
    "shapes-flow",
    "shapes-reward",
    "shapes-latent-reward",
    "shapes-writer",
    "shapes-noise",
    "shapes-videos",
    "shapes-edits",
)


def find(path: str) -> str:
    """The path itself when it exists; else the same path under the project's root when that exists, so that configs can
    name `checkpoints/shapes-sd` from any working directory; else the path itself, perhaps a hub id."""
    if Path(path).exists():
        return path
    if (ROOT / path).exists():
        return str(ROOT / path)
    top, *inside = Path(path).parts or ("",)
    if top == "checkpoints" and inside and inside[0] in SHIPPED and not (ROOT / top / inside[0]).exists():
        raise FileNotFoundError(
            f"{path} is not here: an installed lit_align does not carry checkpoints/{inside[0]}; clone the repository "
            "and run in the clone, or copy its checkpoints/ into the working directory."
        )
    return path


def fetch(file: str) -> str:
    """A local file, `<owner>/<name>/<file>` downloaded from the hub, or an https address downloaded once."""
    where = find(file)
    if Path(where).is_file():
        return where
    if file.startswith("https://"):
        return download(file)
    from huggingface_hub import hf_hub_download

    try:
        owner, name, inside = file.split("/", 2)
        return hf_hub_download(f"{owner}/{name}", inside)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is neither a file nor <owner>/<name>/<file> on a hub that can be reached.") from error


def unfinished(path: str | Path) -> Path:
    """Where this process writes before it renames to `path`: a name that no other process has."""
    return Path(f"{os.path.normpath(path)}.{socket.gethostname()}.{os.getpid()}.part")


def download(url: str) -> str:
    """The file at an https address, kept in torch.hub's folder."""
    import torch

    kept = Path(torch.hub.get_dir(), "lit_align", url.removeprefix("https://"))
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(kept), progress=False)
        except OSError as error:
            raise ValueError(f"{url} cannot be reached: download it elsewhere and give the file instead.") from error
    return str(kept)
