// Points, list rows and the open case's buttons: whatever has a data-case opens that case.
// Runs once in each of the three parts of the tab; `element` is the part.
const detail = () => document.querySelector("#failures-detail");

function open(target) {
  if (!target?.dataset.case) return;
  detail().dataset.asked = target.dataset.case;
  trigger("click", { case: target.dataset.case });
}

function nearestPoint(svg, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let best = null;
  // In the plot's units: a finger does not hit a point, and plots are small on phones.
  let least = event.pointerType === "touch" ? Math.max(14, 22 / svg.getScreenCTM().a) : 14;
  for (const circle of svg.querySelectorAll(".points circle:not(.end)")) {
    const away = Math.hypot(circle.cx.baseVal.value - at.x, circle.cy.baseVal.value - at.y);
    if (away < least) [best, least] = [circle, away];
  }
  return best?.closest("[data-case]");
}

// On the map of images, what is drawn around is a group of cases, in shares of the map's side.
let outline = null;
let isDrawn = false; // the click that ends a drawing opens no case

function shareOfMap(svg, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const share = (value) => Math.min(1, Math.max(0, (value - svg.dataset.margin) / svg.dataset.side));
  return [share(at.x), share(at.y)];
}

element.addEventListener("pointerdown", (event) => {
  const svg = event.target.closest(".map svg");
  isDrawn = false;
  outline = svg && event.button === 0 ? [shareOfMap(svg, event)] : null;
});

element.addEventListener("pointermove", (event) => {
  const svg = outline && element.querySelector(".map svg");
  if (!svg) return;
  const [x, y] = shareOfMap(svg, event);
  const [lastX, lastY] = outline.at(-1);
  if (Math.hypot(x - lastX, y - lastY) < 0.02 || outline.length >= 150) return;
  svg.setPointerCapture(event.pointerId);
  outline.push([x, y]);
  const toPlot = (share) => share * svg.dataset.side + Number(svg.dataset.margin);
  const points = outline.map((point) => point.map(toPlot).join());
  svg.querySelector(".lasso").setAttribute("points", points.join(" "));
});

for (const end of ["pointerup", "pointercancel"]) {
  element.addEventListener(end, () => {
    isDrawn = end === "pointerup" && outline?.length > 2;
    const points = outline?.map((point) => point.map((share) => Number(share.toFixed(3))).join());
    if (isDrawn) trigger("select", { slice: `area: ${points.join(" ")}` });
    else element.querySelector(".lasso")?.removeAttribute("points");
    outline = null;
  });
}

// A map that is being made is asked for again and again.
if (element.closest("#failures-scatter")) {
  setInterval(() => element.querySelector(".waiting")?.checkVisibility() && trigger("tick", {}), 1000);
}

// The list alone scrolls: the page stays where one reads.
function showInList(row) {
  const list = row.closest(".cases");
  const [around, at] = [list, row].map((each) => each.getBoundingClientRect());
  list.scrollTop += Math.min(0, at.top - around.top) + Math.max(0, at.bottom - around.bottom);
}

const openCase = () => document.querySelector("#failures-detail .failure")?.dataset.case;
let left; // the case that was open when a key last asked for its neighbour

let step; // the neighbours' button that was pressed: it is drawn anew, and must not lose the focus
element.addEventListener("click", (event) => {
  step = event.target.closest(".step")?.classList[1];
  const group = event.target.closest("[data-slice]");
  if (group) trigger("select", { slice: group.dataset.slice });
  if (isDrawn) return;
  const svg = event.target.closest("svg");
  open(event.target.closest("[data-case]:is(button, circle, g)") ?? (svg && nearestPoint(svg, event)));
});

element.addEventListener("keydown", (event) => {
  const row = event.target.closest("li");
  const sibling = { ArrowDown: row?.nextElementSibling, ArrowUp: row?.previousElementSibling }[event.key];
  const step = { ArrowLeft: ".previous", ArrowRight: ".next" }[event.key];
  if (sibling) sibling.querySelector("button").focus();
  else if (!step) return;
  event.preventDefault();
  // A key that is held down goes on once the answer is there: every press is answered.
  if (!step || (event.repeat && left === openCase())) return;
  left = openCase();
  document.querySelector(`#failures-detail ${step}`)?.click();
});

// The open case is marked among the points and in the list, wherever it was opened.
if (element.closest("#failures-detail")) {
  watch("value", () => {
    if (step) element.querySelector(`.${step}:enabled`)?.focus();
    const current = openCase();
    // On phones the points are far below the case that they open.
    const { top } = detail().getBoundingClientRect();
    const isAway = top < 0 || top > innerHeight * 0.6;
    if (isAway && detail().dataset.asked === current) detail().scrollIntoView();
    delete detail().dataset.asked;
    for (const part of document.querySelectorAll("#failures-scatter, #failures-list")) {
      part.querySelectorAll("[aria-current]").forEach((mark) => mark.removeAttribute("aria-current"));
      const mark = part.querySelector(`[data-case="${CSS.escape(current ?? "")}"]`);
      mark?.setAttribute("aria-current", "true");
      if (mark?.matches("button")) showInList(mark);
      else mark?.parentNode.append(mark); // on top of its neighbours
    }
  });
}
