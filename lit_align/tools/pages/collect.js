// The page of `python -m lit_align collect`: shows an item, sends a vote, shows the next.
"use strict";

const $ = (id) => document.getElementById(id);
const REASON_KEYS = "qwertyuiop";
let task, item, ranked = [], past = [], busy = false;

const annotator = () => localStorage.getItem("annotator");

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text; // never HTML: prompts are other people's text
  return Object.assign(made, attributes);
}

// Asks the server until it answers; what it refuses is shown.
async function ask(path, options) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      problem("The server does not answer; this is tried again every two seconds. Nothing that it confirmed is lost.");
      await new Promise((done) => setTimeout(done, 2000));
      continue;
    }
    const body = await answer.json();
    problem(answer.ok ? "" : body.error);
    if (!answer.ok) throw new Error(body.error);
    return body;
  }
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function begin() {
  task = await ask("/task");
  document.title = task.question;
  $("question").textContent = task.question;
  $("start").hidden = Boolean(annotator());
  if (!annotator()) return $("name").focus();
  $("who").textContent = annotator();
  await show(await ask("/next?annotator=" + encodeURIComponent(annotator())));
}

async function show(next) {
  item = next.item;
  ranked = [];
  $("bar").max = Math.max(next.total, 1);
  $("bar").value = next.done;
  $("progress").textContent = `${next.done} of ${next.total}`;
  $("vote").hidden = !item;
  $("end").hidden = Boolean(item);
  $("keys").textContent = item ? keys(next.images.length) : "z goes back to your last vote";
  if (!item) return;
  $("prompt").textContent = next.prompt;
  $("images").replaceChildren(...next.images.map(imageButton));
  $("choices").replaceChildren(...choices());
  $("reasons").replaceChildren(...task.reasons.map(reason));
  // a vote on images that are not to be seen yet would be a guess
  await Promise.all([...document.images].map((image) => image.decode().catch(() => problem("An image cannot be shown; skip it."))));
}

function imageButton(source, k) {
  const button = element("button", "", { type: "button", onclick: () => pick(k) });
  button.append(element("img", "", { src: source, alt: `image ${k + 1}`, draggable: false }));
  button.append(element("span", task.task === "ratings" ? "" : String(k + 1)));
  return button;
}

function choices() {
  const made = [];
  if (task.task === "pairs") made.push(["Equally good", 0.5]);
  if (task.task === "ratings") {
    const names = task.scale === 2 ? ["bad", "good"] : Array.from({ length: task.scale }, (_, k) => String(k + 1));
    made.push(...names.map((name, k) => [name, k + 1]));
  }
  made.push(["Skip", null]);
  return made.map(([name, choice]) => element("button", name, { type: "button", onclick: () => send(choice) }));
}

function reason(text, k) {
  const label = element("label", "");
  label.append(element("input", "", { type: "checkbox", value: text, id: `reason${k}` }), ` ${text} (${REASON_KEYS[k]})`);
  return label;
}

function keys(images) {
  const own = {
    pairs: "1 or ← left, 2 or → right, 0 or ↓ equally good",
    ranks: `1 to ${images}: from the best to the worst, Backspace takes the last one back`,
    ratings: task.scale === 2 ? "1 bad, 2 good" : `1 (worst) to ${task.scale} (best)`,
  };
  return `${own[task.task]}, s skips, z goes back`;
}

// Image k was clicked.
function pick(k) {
  if (task.task === "pairs") return send(k);
  if (task.task === "ratings") return;
  const buttons = $("images").children;
  if (k >= buttons.length || ranked.includes(k)) return;
  ranked.push(k);
  buttons[k].classList.add("chosen");
  buttons[k].lastChild.textContent = `${k + 1}: rank ${ranked.length}`;
  if (ranked.length === buttons.length - 1) {
    ranked.push([...Array(buttons.length).keys()].find((left) => !ranked.includes(left)));
    send([...ranked]);
  }
}

function unpick() {
  if (!ranked.length) return;
  const k = ranked.pop();
  $("images").children[k].classList.remove("chosen");
  $("images").children[k].lastChild.textContent = String(k + 1);
}

// Sends a choice, which counts images as they are shown.
async function send(choice) {
  if (busy || !item) return;
  busy = true;
  const reasons = [...document.querySelectorAll("#reasons input:checked")].map((box) => box.value);
  const body = JSON.stringify({ annotator: annotator(), item, choice, reasons });
  try {
    const next = await ask("/vote", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    past.push(item);
    await show(next);
  } finally {
    busy = false;
  }
}

async function back() {
  if (busy || !past.length) return;
  busy = true;
  try {
    await show(await ask(`/item/${past.pop()}?annotator=${encodeURIComponent(annotator())}`));
  } finally {
    busy = false;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.id === "name") return;
  if (event.key === "z") return back();
  if (!item) return;
  const number = Number(event.key), shown = $("images").children.length;
  const box = REASON_KEYS.indexOf(event.key);
  if (event.key === "s") send(null);
  else if (box >= 0 && box < task.reasons.length) $(`reason${box}`).checked ^= 1;
  else if (event.key === "Backspace") unpick();
  else if (task.task === "pairs" && ["ArrowLeft", "ArrowRight"].includes(event.key)) send(event.key === "ArrowLeft" ? 0 : 1);
  else if (task.task === "pairs" && ["0", "ArrowDown"].includes(event.key)) send(0.5);
  else if (task.task === "ratings" && number >= 1 && number <= task.scale) send(number);
  else if (task.task !== "ratings" && number >= 1 && number <= shown) pick(number - 1);
  else return;
  event.preventDefault();
});

$("start").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("name").value.trim()) return;
  localStorage.setItem("annotator", $("name").value.trim());
  begin();
});
begin();
