"""docs/logs.md names every quantity that the code logs, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/logs.md").read_text()


def logged() -> set[str]:
    """The names in calls of log and log_mean, `{stage}` written out."""
    found = set()
    files = [path for path in (ROOT / "lit_align").rglob("*.py") if path.parent.name != "studies"]  # which read logs
    for path in [*files, *(ROOT / "callbacks").glob("*.py")]:
        for name in re.findall(r'"((?:train|val|test|perf|\{stage\})/[\w/{}]+)"', path.read_text()):
            stages = ("train", "val", "test") if "{stage}" in name else ("",)
            found |= {re.sub(r"\{\w+\}", "<name>", name.replace("{stage}", s)) for s in stages}
    return {name for name in found if not name.endswith("/<name>") or name.count("/") > 1}


def test_every_logged_quantity_is_explained():
    known = re.findall(r"`((?:train|val|test|perf)/[^`]+)`", PAGE)
    bare = {name.split("/", 1)[1] for name in known} | set(re.findall(r"`(\w+)`", PAGE))
    for name in logged():
        tail = name.split("/", 1)[1]
        parent = tail.rsplit("/", 1)[0]
        assert tail in bare or (tail.endswith("<name>") and any(b.startswith(f"{parent}/") for b in bare)), name


def test_nothing_is_explained_that_is_not_logged():
    tails = {name.split("/", 1)[1] for name in logged()}
    for name in re.findall(r"`((?:train|val|test|perf)/[^`.]+)`", PAGE):
        tail = name.split("/", 1)[1]
        assert tail in tails or any(re.fullmatch(re.escape(t).replace("<name>", r"[\w<>]+"), tail) for t in tails), name
