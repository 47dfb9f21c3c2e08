// While the filters are folded one is told how many leave cases out; the link to the view knows.
const tab = element.closest("[role=tabpanel]");

function tell() {
  const active = element.querySelector("[data-active]");
  const count = Number(tab.querySelector("#failures-link [data-filters]")?.dataset.filters ?? 0);
  const text = count ? ` (${count} active)` : "";
  if (active && active.textContent !== text) active.textContent = text;
}
new MutationObserver(tell).observe(tab, { attributeFilter: ["data-filters"], childList: true, subtree: true });
