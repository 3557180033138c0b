"""People's choices: a web page that shows images and writes down which are better.

`python -m lit_align predict --config shapes/dpo --data.n 2`, then `python -m lit_align collect --images FOLDER
--out votes`, then `python -m lit_align fit --config shapes/dpo --data.path votes`.

    GET  /                     the page
    GET  /task                 {"task", "question", "scale", "reasons"}
    GET  /next?annotator=A     {"item", "prompt", "images": [addresses], "done", "total"}; item null: nothing is left
    GET  /item/ID?annotator=A  the same for an item that was voted on
    GET  /image/ID/K           the K-th image of an item
    POST /vote                 {"annotator", "item", "choice", "reasons"} -> the next item; answered once it is on disk

Images are shown in an order that differs between annotators and items; `choice` counts them as they are shown.
"""

import hmac
import json
import os
import random
from pathlib import Path

from lit_align.data.votes import Item, Task, Votes, make_items
from lit_align.run_folder import locked
from lit_align.tools.serve import is_loopback, listen

PAGES = Path(__file__).parent / "pages"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
QUESTIONS = {
    "pairs": "Which image is better?",
    "ranks": "Order the images from the best to the worst.",
    "ratings": "How good is the image?",
}
HEADERS = {  # nothing from elsewhere is loaded or run, and no other site shows the page
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def shown_order(item: Item, annotator: str) -> list[int]:
    """The order in which an annotator sees an item's images, always the same."""
    order = list(range(len(item.images)))
    random.Random(f"{annotator} {item.id}").shuffle(order)
    return order


def true_choice(task: Task, choice, order: list[int]):
    """A choice that counts images as they were shown, in the item's own order."""
    if task == "ratings" or choice in (None, 0.5):
        return choice
    places = choice if isinstance(choice, list) else [choice]
    if not all(isinstance(k, int) and 0 <= k < len(order) for k in places):
        raise ValueError(f"{choice!r} is no choice of {task}.")
    return [order[k] for k in choice] if isinstance(choice, list) else order[choice]


def application(votes: Votes, question: str, reasons: list[str], wanted: int, token: str | None, hosts: list[str]):
    """The FastAPI application; see this file's docstring."""
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # a foreign name for this address is an attack

    @app.middleware("http")
    async def guard(request: Request, answer):
        sent = request.query_params.get("token") or request.cookies.get("token") or ""
        if token and not hmac.compare_digest(sent.encode(), token.encode()):
            return JSONResponse(
                {"error": "the address lacks the token: open the one that collect printed."}, 401, HEADERS
            )
        response = await answer(request)
        if token and "token" in request.query_params:  # from here on a cookie, so that no address shows it
            response = RedirectResponse("/", 303)
            response.set_cookie("token", token, httponly=True, samesite="strict")
        response.headers.update(HEADERS)
        return response

    def item_for(annotator: str, item: str | None) -> dict:
        done, total = votes.progress(annotator, wanted)
        found = {"item": item, "done": done, "total": total}
        if item is None:
            return found
        images = [f"/image/{item}/{k}" for k in shown_order(votes.items[item], annotator)]
        return found | {"prompt": votes.items[item].prompt, "images": images}

    def refusal(text: str, status: int = 422):
        return JSONResponse({"error": text}, status)

    @app.get("/")
    def page():
        return FileResponse(PAGES / "collect.html")

    @app.get("/pages/{name}")
    def part(name: str):
        file = PAGES / name
        known = file.name == name and file.suffix in KINDS and file.is_file()
        return FileResponse(file, media_type=KINDS[file.suffix]) if known else refusal("there is no such page.", 404)

    @app.get("/task")
    def task():
        return {"task": votes.task, "question": question, "scale": votes.scale, "reasons": reasons}

    @app.get("/next")
    def following(annotator: str):
        return item_for(annotator, votes.next(annotator, wanted))

    @app.get("/item/{item}")
    def again(item: str, annotator: str):
        return item_for(annotator, item) if item in votes.items else refusal("there is no such item.", 404)

    @app.get("/image/{item}/{k}")
    def image(item: str, k: int):
        images = votes.items[item].images if item in votes.items else ()
        return FileResponse(images[k]) if 0 <= k < len(images) else refusal("there is no such image.", 404)

    @app.post("/vote")
    async def vote(request: Request):
        if request.headers.get("content-type") != "application/json":  # which another site's form cannot send
            return refusal("the content type must be application/json.", 415)
        try:
            given = json.loads(await request.body())
            annotator, item, chosen = str(given["annotator"]).strip(), str(given["item"]), given.get("reasons", [])
            if not 1 <= len(annotator) <= 60 or not set(chosen) <= set(reasons):
                raise ValueError("the annotator's name has 1 to 60 letters, and reasons are those that are offered.")
            votes.check(item, None)  # that there is one
            order = shown_order(votes.items[item], annotator)
            votes.add(annotator, item, true_choice(votes.task, given["choice"], order), chosen, order)
        except (ValueError, KeyError, TypeError) as error:
            return refusal(f"this is no vote: {error}")
        return item_for(annotator, votes.next(annotator, wanted))

    return app


def collect(
    images: list[str],
    out: str,
    task: Task = "pairs",
    size: int = 4,
    per_prompt: int | None = None,
    scale: int = 2,
    reasons: list[str] | None = None,
    question: str | None = None,
    votes_per_item: int = 1,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_env: str = "LIT_ALIGN_TOKEN",
) -> None:
    """Shows a web page on which people choose between images, and writes their votes as a dataset.

    Every vote is on the disk, in `votes.jsonl`, before the page goes on. Ctrl-C ends the server and writes
    `train.parquet`; the same command goes on where it stopped, and writes the file first, also after a crash. `--data
    PickAPic` reads pairs (of DPO; with `--data.binary true` of KTO), `--data Rankings` ranks, `--data CaptionedImages
    --data.label_column label` ratings. Traffic is not encrypted.

    Args:
        images: folders with images and metadata.jsonl, as predict writes them; pairs of several folders compare one
            with another.
        out: the folder of the votes.
        task: pairs (which of two is better), ranks (from the best to the worst), or ratings (of single images).
        size: images of a prompt that are ranked together.
        per_prompt: at most this many items of a prompt, by chance (default: all).
        scale: of ratings, from 1; 2 is bad or good.
        reasons: up to ten, of which any can be ticked; they are written to votes.jsonl.
        question: above the images.
        votes_per_item: of different annotators.
        host: address to listen at; 0.0.0.0 for other machines.
        port: 0 for any that is free.
        token_env: environment variable with a token, which the page's address then must have; it has to be set where
            the host is not this machine alone.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise ValueError("collect needs FastAPI and uvicorn: pip install 'lit-align[serve]'.") from error
    if not 2 <= scale <= 9 or not 2 <= size <= 9 or votes_per_item < 1 or len(reasons or ()) > 10:
        raise ValueError("scale and size are 2 to 9, votes_per_item at least 1, and reasons at most ten.")
    token, folder = os.environ.get(token_env), Path(out)
    items = make_items(images, task, size, per_prompt)
    with locked(folder, "collecting votes", "--out"):
        votes = Votes(folder / "votes.jsonl", items, task, scale)
        votes.export(folder)
        listener = listen(host, port, token, token_env)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        hosts = ["localhost", "127.0.0.1", "[::1]", host] if host == "localhost" or is_loopback(host) else ["*"]
        print(
            f"{len(items)} items, {len(votes.last)} votes; open {address}{f'?token={token}' if token else ''}",
            flush=True,
        )
        app = application(votes, question or QUESTIONS[task], reasons or [], votes_per_item, token, hosts)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass
        rows = votes.export(folder)
    print(f"{len(votes.last)} votes are in {folder / 'votes.jsonl'}, {rows} rows in {folder / 'train.parquet'}")
