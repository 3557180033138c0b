"""Tables of rows from local files."""

from pathlib import Path

from lit_align.paths import find

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read_table(path: str):
    """A local .txt, .jsonl, .csv or .parquet file as a datasets.Dataset."""
    from datasets import load_dataset

    file = Path(find(path))
    if not file.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .txt, .jsonl, .csv or .parquet file.")
    if file.suffix not in READERS:
        raise ValueError(f"{path} ends in {file.suffix!r}; give a .txt, .jsonl, .csv or .parquet file.")
    return load_dataset(READERS[file.suffix], data_files=str(file), split="train")


def read_prompts(path: str, column: str = "prompt"):
    """A prompt file as rows {"prompt", "skill" where the file has it}; blank lines are left out."""
    rows = read_table(path)
    column = "text" if Path(path).suffix == ".txt" else column
    if column not in rows.column_names:
        raise ValueError(f"column `{column}` not found in {path}; columns are {', '.join(rows.column_names)}.")
    rows = rows.select_columns([column, *(c for c in ("skill",) if c in rows.column_names)])
    rows = rows.rename_column(column, "prompt") if column != "prompt" else rows
    return rows.filter(lambda text: bool(text.strip()), input_columns="prompt")
