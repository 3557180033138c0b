"""A web page of images side by side, in one file that needs nothing else."""

import base64
import html
import io
from pathlib import Path

MOST = 500  # prompts on a page
SIDE = 320  # pixels of a picture at most

HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>lit_align evaluate</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { font: 15px system-ui, sans-serif; margin: 1.5rem; max-width: 75rem; color: #222; background: #fff }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto }
article { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem 1rem; border-top: 1px solid #ddd; padding: 1rem 0 }
article h2 { grid-column: 1 / -1; font-size: 1rem; margin: 0 }
figure { margin: 0 } img { max-width: 100%; display: block } figcaption { font-size: .85rem; color: #555 }
.better { outline: 3px solid #2a8 } [hidden] { display: none }
</style>
<h1>Evaluation</h1>
"""
CONTROLS = """<p><label>Search in prompts <input id="search" type="search"></label>
<label>Show <select id="show"><option value="">all<option value="first">where the first is better
<option value="second">where the second is better<option value="tie">ties</select></label>
<span id="count" role="status"></span></p>
"""
SCRIPT = """<script>
const rows = [...document.querySelectorAll("article")], search = document.getElementById("search")
const show = document.getElementById("show"), count = document.getElementById("count")
function filter() {
  const words = search.value.toLowerCase()
  for (const row of rows) {
    const found = row.querySelector("h2").textContent.toLowerCase().includes(words)
    row.hidden = !found || (show.value && row.dataset.better != show.value)
  }
  count.textContent = rows.filter(row => !row.hidden).length + " of " + rows.length
}
search.addEventListener("input", filter); show.addEventListener("change", filter); filter()
</script>
"""


def page(sides: list[dict], table: str) -> str:
    """The page of one or two sides {"name", "rows": [{"prompt", "file", "index"}], "records": [{score: number}]}, whose
    rows are alike. The first number of a record says which image is better. `table` is shown above, as it is."""
    rows = sides[0]["rows"]
    some = range(min(MOST, len(rows)))
    said = (
        f"<p>The first {MOST} of {len(rows)} images; the others are in results.jsonl.</p>" if len(rows) > MOST else ""
    )
    parts = [HEAD, f"<pre>{html.escape(table)}</pre>", CONTROLS, said]
    return "".join([*parts, *(article(sides, i) for i in some), SCRIPT, "</html>\n"])


def article(sides: list[dict], i: int) -> str:
    """One prompt with its images."""
    records = [side["records"][i] for side in sides]
    firsts = [next((v for v in record.values() if isinstance(v, int | float)), None) for record in records]
    better = ""
    if len(sides) == 2 and None not in firsts:
        better = "first" if firsts[0] > firsts[1] else "second" if firsts[0] < firsts[1] else "tie"
    row = sides[0]["rows"][i]
    text = f'<article data-better="{better}"><h2>{row["index"]}: {html.escape(row["prompt"])}</h2>'
    for side, record, name in zip(sides, records, ("first", "second")):
        scores = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
        caption = html.escape(f"{side['name']}. {scores}")
        mark = ' class="better"' if better == name else ""
        text += f'<figure><img{mark} alt="" loading="lazy" src="{picture(side["rows"][i]["file"])}">'
        text += f"<figcaption>{caption}</figcaption></figure>"
    return text + "</article>\n"


def picture(file: Path) -> str:
    """An image file as a data address, shrunk to at most SIDE pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(file) as image:
        image = image.convert("RGB")
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
