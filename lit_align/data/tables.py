"""Tables of rows."""

from pathlib import Path

from lit_align.paths import find

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read_table(path: str, split: str = "train"):
    """A .txt, .jsonl, .csv or .parquet file, or the `split` of a folder or hub dataset, as a datasets.Dataset."""
    from datasets import load_dataset

    file = Path(find(path))
    if file.suffix in READERS and not file.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .txt, .jsonl, .csv or .parquet file.")
    if file.suffix in READERS:
        return load_dataset(READERS[file.suffix], data_files=str(file), split="train")
    if file.is_file():
        raise ValueError(f"{path} ends in {file.suffix!r}; give a .txt, .jsonl, .csv or .parquet file.")
    return load_dataset(str(file), split=split)


def read_prompts(path: str, column: str = "prompt", split: str = "train"):
    """Prompts as rows {"prompt", "skill" where there is one}; blank lines are left out."""
    rows = read_table(path, split)
    column = "text" if Path(path).suffix == ".txt" else column
    if column not in rows.column_names:
        raise ValueError(f"column `{column}` not found in {path}; columns are {', '.join(rows.column_names)}.")
    rows = rows.select_columns([column, *(c for c in ("skill",) if c in rows.column_names)])
    rows = rows.rename_column(column, "prompt") if column != "prompt" else rows
    return rows.filter(lambda text: bool(text.strip()), input_columns="prompt")
