// The Assess tab's keys: Ctrl+Enter (or Cmd+Enter) in the prompt assesses.
// Pressing Assess while the image is still being uploaded takes effect once it is there.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (!event.target.closest?.("#prompt")) return;
  event.preventDefault();
  document.querySelector("#assess:not(:disabled)")?.click();
});

// What is about a prompt is shown while that is in the box, or unless it is (annotation/ui/messages.py).
function followPrompt() {
  const box = document.querySelector("#prompt textarea");
  const fold = (text) => text.trim().replace(/\s+/g, " ");
  for (const part of document.querySelectorAll("[data-while-prompt], [data-unless-prompt]")) {
    const { whilePrompt, unlessPrompt } = part.dataset;
    part.hidden = (fold(whilePrompt ?? unlessPrompt) === fold(box.value)) === (whilePrompt === undefined);
  }
  const counter = document.querySelector("#prompt-length p");
  const [length, most] = [[...fold(box.value)].length, Number(counter.dataset.most)];
  const [shown, limit] = [length, most].map((count) => count.toLocaleString("en"));
  counter.textContent = length > most ? `${shown} characters: the first ${limit} are read` : `${shown} of ${limit}`;
  counter.toggleAttribute("data-over", length > most);
}

function bringIntoView(selector, block) {
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
  document.querySelector(selector)?.scrollIntoView({ behavior, block });
}

// On a small screen, pressing Assess or Compare brings up the results, with Stop and what is going on above them.
document.addEventListener("click", ({ target }) => {
  for (const [button, actions, above, edge] of [
    ["#assess", "#actions", "#cards", "top"],
    ["#compare", "#compare-actions", "#compare-order", "bottom"],
  ]) {
    if (!target.closest?.(button)) continue;
    const results = document.querySelector(above).getBoundingClientRect()[edge];
    if (results > 0.9 * innerHeight) bringIntoView(actions, "start");
  }
});

document.addEventListener("click", (event) => {
  const offer = event.target.closest?.("[data-use-prompt]");
  if (!offer) return;
  const box = document.querySelector("#prompt textarea");
  box.value = offer.dataset.usePrompt;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  box.focus();
});

// Leaving the page, or signing out, asks first while a correction is unsaved: a card keeps no draft.
const isChanged = ({ value, defaultValue, checked, defaultChecked }) =>
  value !== defaultValue || checked !== defaultChecked;
window.addEventListener("beforeunload", (event) => {
  const fields = document.querySelectorAll(".card[data-mode=edit] :is(input, textarea)");
  if ([...fields].some(isChanged)) event.preventDefault();
});

// An event that the server does not take, because the session has ended: the page and what was typed stay.
const ask = window.fetch;
window.fetch = async (...request) => {
  const response = await ask(...request);
  if (response.status !== 401 || !new URL(response.url).pathname.endsWith("/queue/join")) return response;
  document.dispatchEvent(new Event("unanswered"));
  const detail =
    'You are signed out. <a href="." target="_blank">Sign in again</a> in another tab, then repeat this here: ' +
    "what you typed stays on this page.";
  return Response.json({ detail }, { status: 401 });
};

// What the browser cannot show leaves the box empty; a copy that it can show may follow.
for (const [name, visibility] of [["error", "hidden"], ["load", ""]]) {
  document.addEventListener(
    name,
    ({ target }) => target.closest?.("#image") && (target.style.visibility = visibility),
    true,
  );
}

let waiting = false;
document.addEventListener(
  "click",
  (event) => {
    const assess = event.target.closest?.("#assess");
    const uploading = () => document.querySelector("#image .uploading");
    if (!assess || !uploading()) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    if (waiting) return;
    waiting = true;
    const watch = new MutationObserver(() => {
      if (uploading()) return;
      watch.disconnect();
      waiting = false;
      setTimeout(() => assess.click(), 100); // after the page has taken the image in
    });
    watch.observe(document.querySelector("#image"), { childList: true, subtree: true });
  },
  true,
);
