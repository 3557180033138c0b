"""Datasets that are published as JSON files and archives of images: where their files are, unpacked once."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lit_align.paths import find


def local_folder(path: str, patterns: Sequence[str], revision: str | None, home: str) -> Path:
    """The folder of a dataset's files: a folder as it is, an archive unpacked, or the files of a hub dataset that match
    `patterns`, downloaded. `home` ends the message of the FileNotFoundError: where the data can be had."""
    place = Path(find(path))
    if place.is_dir():
        return place
    if place.is_file():
        return unpacked([place])
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{path} is neither a folder, nor an archive, nor a dataset of the hub that can be reached "
            f"({' '.join(str(error).split())[:200]}). {home}"
        ) from error


def file_in(folder: Path, name: str, home: str) -> Path:
    """The file `name` in the folder or below it."""
    found = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(name))
    if not found:
        raise FileNotFoundError(f"{folder} has no {name}. {home}")
    return found[0]


def read_records(file: Path, *keys: str) -> list[dict]:
    """The objects of a JSON list; ValueError if the file is cut off, or if an object lacks one of the keys."""
    try:
        records = json.loads(check_whole(file).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON (line {error.lineno}: {error.msg}): download it again.") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} is no list of records: download it again.")
    for i, record in enumerate(records):
        if missing := [key for key in keys if not isinstance(record, dict) or key not in record]:
            raise ValueError(f"record {i} of {file} has no {missing[0]}: mend it or leave it out.")
    return records


def check_whole(file: Path) -> Path:
    """The file; ValueError if it is the pointer that a clone without Git LFS leaves in its place."""
    with open(file, "rb") as start:
        if start.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(f"{file} is a pointer of Git LFS, not the data: run `git lfs pull` in its repository.")
    return file


def image_folder(folder: Path, names: Sequence[str], inside: Sequence[str], archives: str) -> Path:
    """The folder that image paths are relative to: `folder`, a folder `inside` it, or the same in what its archives
    hold.

    Args:
        names: some image paths, of which at least one must be found.
        inside: subfolders to look in.
        archives: pattern of the archives' names; one that is split into parts matches all of them.
    """
    parts = sorted(folder.glob(archives))
    for root in (lambda: folder, *([lambda: unpacked(parts)] if parts else ())):
        for place in (root(), *(root() / name for name in inside)):
            if any((place / name).is_file() for name in names):
                return place
    raise FileNotFoundError(f"{folder} has no image {', '.join(names[:1])}, and no archive {archives} that holds it.")


class Parts:
    """The files of a split archive, read as one. What `tarfile` needs of a stream: `read`."""

    def __init__(self, files: Sequence[Path]):
        self.files, self.open = list(files), None

    def read(self, n: int) -> bytes:
        found = b""
        while len(found) < n:
            self.open = self.open or (open(self.files.pop(0), "rb") if self.files else None)
            if self.open is None:
                break
            found += (piece := self.open.read(n - len(found)))
            if not piece:
                self.open.close()
                self.open = None
        return found


def unpacked(files: Sequence[Path]) -> Path:
    """The folder with what a .zip, a .tar or .tar.gz, or the parts of one in their order hold. It is unpacked once,
    beside the caches of `datasets` (HF_DATASETS_CACHE), and again when a file changes."""
    from datasets import config
    from datasets.fingerprint import Hasher
    from filelock import FileLock

    stamps = [check_whole(file).stat() for file in files]
    key = Hasher.hash([(str(f.absolute()), s.st_size, s.st_mtime_ns) for f, s in zip(files, stamps)])
    folder = Path(config.HF_DATASETS_CACHE, "lit_align", f"unpacked-{key}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # one process unpacks, the others wait
        if not folder.is_dir():
            size = sum(s.st_size for s in stamps) / 1e9
            rank_zero_info(f"{files[0]}: {size:.3g} GB in {len(files)} files are unpacked, once, into {folder}")
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                extract(files, partial)
            except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{files[0]} is no archive, or is cut off ({error}): download it again.") from error
            partial.rename(folder)
    return folder


def extract(files: Sequence[Path], folder: Path) -> None:
    if zipfile.is_zipfile(files[0]):
        with zipfile.ZipFile(files[0]) as archive:
            archive.extractall(folder)
    else:
        with tarfile.open(fileobj=Parts(files), mode="r|*", bufsize=1 << 20) as archive:
            archive.extractall(folder, filter="data")  # nothing outside of the folder
