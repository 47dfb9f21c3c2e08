// A card that turns into a form (annotation/ui/assess/correct.py). The form is in the card all along; `data-mode`
// says which of the two is seen. The server answers every event with the card anew: with another
// `data-version` where something was saved or undone, else what was typed stays.
const PATIENCE = 20_000; // milliseconds to wait for an answer

let version = null;
let opened = 0; // when the form was; milliseconds
let sent = { content: "", token: "" };
let waiting = null;

const card = () => element.querySelector(".card");
const form = () => element.querySelector("form.correction");
const problem = () => element.querySelector(".problem");

// Content that is sent again, because no answer came, has the token of before: it is saved once.
function token(content) {
  if (content !== sent.content) sent = { content, token: newToken() };
  return sent.token;
}

function setMode(mode) {
  card().dataset.mode = mode;
}

function edit() {
  opened = performance.now();
  setMode("edit");
  const text = form().elements.description;
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
  text.focus({ preventScroll: true });
  text.setSelectionRange(text.value.length, text.value.length);
}

function cancel() {
  form().reset();
  showScore(form());
  problem().textContent = "";
  setMode("read");
  element.querySelector('[data-do="edit"]').focus({ preventScroll: true });
}

function busy(now) {
  clearTimeout(waiting);
  element.toggleAttribute("data-busy", now);
  if (!now) return;
  waiting = setTimeout(() => {
    busy(false);
    problem().textContent = "There is no answer from the server. What you typed is still here; try again.";
  }, PATIENCE);
}

function send(event, data, seconds = 0) {
  if (element.hasAttribute("data-busy")) return;
  busy(true);
  trigger(event, { aspect: form().dataset.aspect, ...data, token: token(JSON.stringify(data)), seconds });
}

document.addEventListener("unanswered", () => busy(false)); // no card will come (assess.js, correct.py)

function save() {
  send("save", readForm(form()), (performance.now() - opened) / 1000);
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  if (button.dataset.do === "edit") edit();
  if (button.dataset.do === "cancel") cancel();
  if (button.dataset.do === "agree") send("agree", { agrees: true });
  if (button.dataset.do === "undo") send("undo", { correction: Number(button.dataset.correction) });
});

element.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});

element.addEventListener("input", (event) => {
  if (event.target.name === "score") showScore(form());
});

element.addEventListener("keydown", (event) => {
  if (!event.target.closest("form.correction")) return;
  if (event.key === "Escape") cancel();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  else return;
  event.preventDefault();
  event.stopPropagation();
});

watch("value", () => {
  const asked = element.hasAttribute("data-busy");
  busy(false);
  if (!form()) return;
  const anew = form().dataset.version !== version;
  if (anew) form().reset();
  showScore(form());
  if (!anew) return;
  version = form().dataset.version;
  sent = { content: "", token: "" };
  if (asked) element.querySelector(".verdict [data-do]").focus({ preventScroll: true });
});
