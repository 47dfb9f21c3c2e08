// The grid of compared images (annotation/ui/compare/grid.py): arrows walk, Enter picks, Space flips between the
// image in focus and the one before it, in a view where both have the same zoom and the same place in the middle.
let now = null; // data-index of the image in focus or in the view
let before = null; // of the one before it
let zoomed = false; // one pixel of the image is one of the screen; else it fits
let middle = { x: 0.5, y: 0.5 }; // what is in the middle of the view, as a share of width and height

const cards = () => [...element.querySelectorAll(".compared > li")];
const card = (index) => element.querySelector(`.compared > li[data-index="${index}"]`);
const view = () => element.querySelector("dialog.flicker");
const newToken = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("");

function go(index) {
  if (index === now) return;
  before = now;
  now = index;
}

// The other image of the two: the one before, else the first, or the second where this is the first.
function other() {
  if (before !== null && before !== now && card(before)) return before;
  return cards().map((each) => each.dataset.index).find((index) => index !== now) ?? now;
}

function walk(step) {
  const all = cards();
  const at = all.findIndex((each) => each.dataset.index === now);
  const next = all[at < 0 ? 0 : Math.min(Math.max(at + step, 0), all.length - 1)];
  if (!next) return;
  go(next.dataset.index);
  if (view().open) draw();
  else next.querySelector(".look").focus();
}

function pick(index) {
  const button = card(index)?.querySelector('[data-do="pick"]');
  if (button) trigger("pick", { index: Number(index), token: newToken() });
}

function look(index) {
  go(index);
  if (!view().open) view().showModal(); // which gives the stage the focus: Enter presses no button
  draw();
}

// Images stay in the view once they were shown, so that flipping waits for nothing.
function draw() {
  const stage = view().querySelector(".stage");
  for (const index of new Set([now, other()])) {
    if (stage.querySelector(`[data-index="${index}"]`)) continue;
    const image = card(index).querySelector("img").cloneNode();
    image.loading = "eager";
    image.dataset.index = index;
    image.draggable = false;
    image.addEventListener("load", draw);
    stage.append(image);
  }
  const room = stage.getBoundingClientRect();
  for (const image of stage.children) {
    const fit = Math.min(room.width / image.naturalWidth, room.height / image.naturalHeight);
    const scale = zoomed ? 1 / devicePixelRatio : fit;
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const { x, y } = zoomed ? middle : { x: 0.5, y: 0.5 };
    image.style.width = `${width}px`;
    image.style.height = `${height}px`;
    image.style.left = `${room.width / 2 - x * width}px`;
    image.style.top = `${room.height / 2 - y * height}px`;
    image.style.visibility = image.dataset.index === now ? "visible" : "hidden";
  }
  const button = (action) => view().querySelector(`[data-do="${action}"]`);
  view().querySelector('[role="status"]').textContent = card(now).querySelector("h4").textContent;
  button("zoom").setAttribute("aria-pressed", zoomed);
  button("flip").textContent = `Flip to ${card(other()).querySelector(".place").textContent}`;
  button("before").disabled = now === cards()[0].dataset.index;
  button("after").disabled = now === cards().at(-1).dataset.index;
  const ofCard = card(now).querySelector('[data-do="pick"]'); // viewers have none
  button("pick").hidden = !ofCard;
  button("pick").textContent = ofCard?.textContent ?? "";
  button("pick").setAttribute("aria-pressed", ofCard?.ariaPressed ?? false);
}

function flip() {
  go(other());
  draw();
}

function zoom(event) {
  const image = view().querySelector(`.stage [data-index="${now}"]`);
  if (!zoomed && event?.clientX && image.contains(event.target)) {
    const at = image.getBoundingClientRect();
    middle = { x: (event.clientX - at.left) / at.width, y: (event.clientY - at.top) / at.height };
  }
  zoomed = !zoomed;
  draw();
}

let dragged = false;
element.addEventListener("pointermove", (event) => {
  const image = event.target.closest(".stage img");
  if (!image || !zoomed || !event.buttons) return;
  dragged = true;
  const within = (share) => Math.min(Math.max(share, 0), 1);
  middle = {
    x: within(middle.x - event.movementX / image.offsetWidth),
    y: within(middle.y - event.movementY / image.offsetHeight),
  };
  draw();
});
element.addEventListener("pointerdown", () => (dragged = false));

element.addEventListener("click", (event) => {
  const action = event.target.closest("[data-do]")?.dataset.do;
  const index = event.target.closest("li[data-index]")?.dataset.index ?? now;
  if (action === "look") look(index);
  else if (action === "pick") pick(index);
  else if (action === "undo") trigger("undo", { pick: Number(event.target.dataset.pick) });
  else if (action === "before") walk(-1);
  else if (action === "after") walk(1);
  else if (action === "flip") flip();
  else if (action === "zoom") zoom();
  else if (action === "close") view().close();
  else if (event.target.closest(".stage") && !dragged) zoom(event);
  if (view()?.open && event.detail) view().querySelector(".stage").focus(); // a mouse: the keys stay those of the view
});

element.addEventListener("focusin", (event) => {
  const index = event.target.closest(".compared > li")?.dataset.index;
  if (index) go(index);
});

element.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inView = view()?.open;
  const onCard = inView || event.target.closest(".compared > li");
  const presses = event.target.matches("button:not(.look)") && [" ", "Enter"].includes(event.key);
  if (!onCard || presses) return;
  const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (step) walk(step);
  else if (event.key === " ") inView ? flip() : look(now);
  else if (event.key === "Enter") pick(now);
  else if (event.key.toLowerCase() === "z" && inView) zoom();
  else return;
  event.preventDefault();
});

// The grid comes anew with every answer: the view stays open, and the focus where it was.
let wasOpen = false;
element.addEventListener("close", () => ((wasOpen = false), card(now)?.querySelector(".look").focus()), true);
new MutationObserver(() => {
  if (!view() || view().open) return;
  if (wasOpen && card(now)) look(now);
  else if (now !== null && document.activeElement === document.body) {
    card(now)?.querySelector(".look").focus({ preventScroll: true });
  }
}).observe(element, { childList: true, subtree: true });
element.addEventListener("click", () => (wasOpen = view()?.open ?? false));
element.addEventListener("keydown", () => (wasOpen = view()?.open ?? false));
