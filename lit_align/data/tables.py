"""Tables of rows, from files and from the hub."""

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_align.data.batch import COLUMN
from lit_align.paths import find

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
PROMPTS = ("prompt", "caption", "text", "Prompt", "Prompts")  # what published prompt files call their column


def read_table(path: str, split: str = "train", revision: str | None = None):
    """A .txt, .jsonl, .json, .csv, .tsv or .parquet file, or the `split` of a folder or hub dataset, as a
    datasets.Dataset.

    A .json file is a list of objects, an object of objects, or a list of texts, which get the column `text`. A folder
    of .txt files alone has a row for each file: `text`, and `file_name` without its ending. In a CSV only an empty cell
    is missing: the words None, NA and null stay what they are. A text file that is not UTF-8 is read as Latin-1, with a
    warning. Raises ValueError if there is no row or a line is broken.
    """
    from datasets import Dataset, load_dataset

    file = Path(find(path))
    if file.suffix in READERS and not file.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .txt, .json, .jsonl, .csv, .tsv or .parquet file.")
    if file.is_file() and file.suffix not in READERS:
        raise ValueError(f"{path} ends in {file.suffix!r}; give a .txt, .json, .jsonl, .csv, .tsv or .parquet file.")
    if file.is_dir() and {f.suffix for f in file.iterdir()} == {".txt"}:
        rows = read_texts(file)
    elif not file.is_file():
        rows = load_dataset_of(path, str(file), split=split, revision=revision)
    elif not file.stat().st_size:
        raise ValueError(f"{path} is empty.")
    else:
        options = {} if file.suffix == ".parquet" else {"encoding": text_encoding(path, file)}
        if READERS[file.suffix] == "json":
            check_json(path, file, options["encoding"])
        if READERS[file.suffix] == "csv":
            rows = read_csv(path, file, options["encoding"])
        elif file.suffix == ".json" and (values := nested_json(file, options["encoding"])):
            rows = Dataset.from_dict(columns_of(values), on_mixed_types="use_json")
        else:
            rows = load_dataset(READERS[file.suffix], data_files=str(file), split="train", **options)
    if not len(rows):
        raise ValueError(f"{path} has no rows.")
    return rows


def load_dataset_of(path: str, *args, **kwargs):
    """`datasets.load_dataset` for what the user calls `path`; one sentence where it finds nothing."""
    from datasets import load_dataset

    try:
        return load_dataset(*args, **kwargs)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{path} is neither a file, nor a folder with data, nor a dataset of the hub that can be reached "
            f"({' '.join(str(error).split())[:200]})."
        ) from error


def read_rows(path: str, split: str, revision: str | None = None, streaming: bool = False):
    """A split of a dataset of parquet or WebDataset (.tar) files, as a datasets.Dataset or IterableDataset.

    Args:
        path: a folder of files named after their split (train-00000-of-00645.parquet; all .tar files, if none has the
            split's name and the split is train), one file, a pattern of files, or a hub id.
    """
    place, streams = Path(find(path)), {"split": "train", "streaming": streaming}
    if place.is_dir():
        files = split_files(path, place, split)
    elif place.suffix in (".parquet", ".tar"):
        files = [find(path)]
    else:
        return load_dataset_of(path, path, split=split, revision=revision, streaming=streaming)
    kind = "parquet" if files[0].endswith(".parquet") else "webdataset"
    return load_dataset_of(path, kind, data_files=files, **streams)


def split_files(path: str, folder: Path, split: str) -> list[str]:
    """The parquet files of a split, or its .tar files."""
    for kind in ("parquet", "tar"):
        files = sorted(folder.rglob(f"*.{kind}"))
        named = [str(f) for f in files if f.stem == split or f.stem.startswith(f"{split}-")]
        if named or (kind == "tar" and split == "train" and files):
            return named or [str(f) for f in files]
    raise FileNotFoundError(f"{path} has no {split}.parquet, {split}-*.parquet or {split}-*.tar; set --data.split.")


def write_parquet(rows: Iterable[dict], kinds: dict[str, str | list[str]], file: Path) -> int:
    """Writes rows as a parquet file, whole or not at all, 64 at a time, and returns how many they are. `kinds` names
    the columns and their types, as `datasets.Value` does; a type in a list stands for a list of it."""
    from datasets import Features, List, Value
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    features = {k: List(Value(kind[0])) if isinstance(kind, list) else Value(kind) for k, kind in kinds.items()}
    schema, partial, n = Features(features).arrow_schema, file.with_suffix(".partial"), 0
    with ParquetWriter(partial, schema) as writer:
        for batch in batched(rows, 64):
            writer.write_table(Table.from_pylist([{name: row[name] for name in kinds} for row in batch], schema))
            n += len(batch)
    os.replace(partial, file)
    return n


def batched(rows: Iterable, size: int) -> Iterator[list]:
    """The rows in lists of `size`, the last perhaps shorter."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def columns_of(rows: Iterable[dict]) -> dict[str, list]:
    """Rows as lists, one per column; None where a row lacks the column."""
    columns, n = {}, 0
    for n, row in enumerate(rows, 1):
        for name, cell in row.items():
            column = columns.setdefault(name, [])
            column += [None] * (n - 1 - len(column)) + [cell]
    return {name: column + [None] * (n - len(column)) for name, column in columns.items()}


def read_texts(folder: Path):
    """A row for each .txt file of a folder: `text`, and `file_name` without its ending."""
    from datasets import Dataset

    files = sorted(folder.iterdir())
    texts = [file.read_text(text_encoding(str(file), file)).strip() for file in files]
    return Dataset.from_dict({"text": texts, "file_name": [file.stem for file in files]})


def nested_json(file: Path, encoding: str) -> list[dict] | None:
    """The rows of a JSON list of texts, or of an object of objects; None for what `datasets` reads itself."""
    with open(file, encoding=encoding) as text:
        try:
            content = json.load(text)
        except json.JSONDecodeError:  # an object on each line
            return None
    if isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values()):
        return list(content.values())
    return (
        [{"text": row} for row in content]
        if isinstance(content, list) and content and isinstance(content[0], str)
        else None
    )


def read_csv(path: str, file: Path, encoding: str):
    """A CSV, or a table separated by tabs, as a datasets.Dataset in memory, each column of one type: integer, float,
    boolean or text."""
    import pandas
    from datasets import Dataset

    kinds = {"keep_default_na": False, "na_values": [""], "dtype_backend": "numpy_nullable", "low_memory": False}
    kinds["sep"] = "\t" if file.suffix == ".tsv" else ","
    try:
        return Dataset.from_pandas(pandas.read_csv(file, encoding=encoding, **kinds), preserve_index=False)
    except ValueError as error:
        raise ValueError(f"{path} is not a CSV: {' '.join(str(error).split())}.") from error


def text_encoding(path: str, file: Path) -> str:
    """The encoding of a text file: UTF-8, else Latin-1 with a warning; ValueError for UTF-16."""
    with open(file, "rb") as start:
        mark = start.read(3)
    if mark[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(f"{path} is UTF-16: save it as UTF-8.")
    try:
        with open(file, encoding="utf-8") as text:
            while text.read(1 << 20):
                pass
    except UnicodeDecodeError as error:
        rank_zero_warn(f"{path} is not UTF-8 (byte {error.start}): it is read as Latin-1.")
        return "latin-1"
    return "utf-8-sig" if mark == codecs.BOM_UTF8 else "utf-8"


def check_json(path: str, file: Path, encoding: str) -> None:
    """Raises ValueError that names the first line which is not JSON (a .json file may be one list of objects)."""
    with open(file, encoding=encoding) as lines:
        number, text = 0, ""
        try:
            if file.suffix == ".json" and lines.read(64).lstrip().startswith("["):
                lines.seek(0)
                return json.load(lines) and None
            lines.seek(0)
            for number, text in enumerate(lines, 1):
                if text.strip() and not isinstance(json.loads(text), dict):
                    raise ValueError(f"line {number} of {path} is not a JSON object {{...}}.")
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number or error.lineno} of {path} is not JSON ({error.msg}).") from error


def named_columns(rows, file: str, columns: dict[str, str], optional: tuple[str, ...] = ()):
    """The table with `columns` {key: the file's column} under their keys, the `optional` ones as they are called,
    `index` and `file` for messages, and each further column of the file as `columns.<name>`."""
    from datasets import Features, IterableDataset, Value

    for column in columns.values():
        if column not in rows.column_names:
            raise ValueError(f"column `{column}` not found in {file}; columns are {', '.join(rows.column_names)}.")
    known = {*columns.values(), *optional}
    rows = rows.rename_columns({column: COLUMN + column for column in rows.column_names if column not in known})
    rows = rows.rename_columns({column: key for key, column in columns.items() if column != key})
    if isinstance(rows, IterableDataset):
        features = rows.features and Features({**rows.features, "index": Value("int64"), "file": Value("string")})
        return rows.map(lambda row, i: {"index": i, "file": file}, with_indices=True, features=features)
    return rows.add_column("index", list(range(len(rows)))).add_column("file", [file] * len(rows))


def as_text(rows, names: list[str]):
    """The rows with the columns `names` as text where they hold bytes, as fields of a WebDataset without an ending do.
    No other column is copied."""
    from datasets import Features, IterableDataset, Value

    names = [name for name in names if rows.features and rows.features[name] == Value("binary")]
    if names and isinstance(rows, IterableDataset):
        features = Features({**rows.features, **dict.fromkeys(names, Value("string"))})
        return rows.map(lambda row: {name: row[name] and row[name].decode() for name in names}, features=features)
    for name in names:
        cells = [cell and cell.decode() for cell in rows[name][:]]
        rows = rows.remove_columns(name).add_column(name, cells)
    return rows


def check_captions(rows, column: str) -> None:
    """Raises ValueError that names the first row whose `prompt` is not text; `column` is its name in the file."""
    for i, text in enumerate(rows["prompt"][:]):
        if not isinstance(text, str):
            found = "is empty" if text is None else f"holds {str(text)[:60]!r} ({type(text).__name__})"
            row = rows.select_columns(["index", "file"])[i]
            raise ValueError(f"row {row['index']}, column {column} of {row['file']} {found}: give one caption as text.")


def read_prompts(path: str, column: str = "prompt", split: str = "train", revision: str | None = None):
    """Rows {"prompt", "index", "file", "columns.<name>" for each further column}; blank prompts are left out. Where
    there is no column `prompt`, another usual name is taken (PROMPTS), and the log says so."""
    table = read_table(path, split, revision)
    usual = [name for name in PROMPTS if name in table.column_names]
    if column == "prompt" and usual and usual[0] != "prompt":
        column = usual[0]
        rank_zero_info(f"{path}: the prompts are column `{column}`")
    rows = named_columns(table, path, {"prompt": column})
    check_captions(rows, column)
    kept = rows.filter(lambda text: bool(text.strip()), input_columns="prompt")
    if not len(kept):
        raise ValueError(f"{path} has no prompts.")
    if len(kept) < len(rows):
        rank_zero_info(f"{path}: {len(rows) - len(kept)} of {len(rows)} prompts are blank and left out")
    return kept
