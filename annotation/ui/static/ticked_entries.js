// Of a list whose entries can be ticked: the buttons on its tab that take the ticked ones, or else all that
// match, say how many these are.
const LABELS = {
  "#images-enqueue": (entries) => `Queue ${entries("image")}`,
  "#failures-enqueue": (entries) => `Queue the images of ${entries("case")}`,
  "#failures-export": (entries) => `Download ${entries("case")} as CSV`,
};
const tickedEntry = new WeakMap();
const panel = element.closest("[role=tabpanel]");
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function label() {
  // Gradio makes another entry of an element that is there, and leaves its tick.
  for (const box of element.querySelectorAll("input:checked")) box.checked = tickedEntry.get(box) === box.value;
  const ticked = element.querySelectorAll("input:checked").length;
  const matching = Number(element.querySelector("[data-matching]")?.dataset.matching ?? 0);
  const all = matching > 1 ? "all " : "";
  const entries = (noun) =>
    ticked ? counted(ticked, `ticked ${noun}`) : all + counted(matching, `matching ${noun}`);
  for (const [id, text] of Object.entries(LABELS)) {
    const button = panel.querySelector(id);
    if (button && button.textContent !== text(entries)) button.textContent = text(entries);
  }
}

element.addEventListener("change", ({ target }) => {
  tickedEntry.set(target, target.value);
  label();
});
// Not `watch`: Gradio fills lists that were hidden before it runs their scripts, and brings buttons later.
const attributeFilter = ["value", "data-matching"];
new MutationObserver(label).observe(panel, { attributeFilter, childList: true, subtree: true });
