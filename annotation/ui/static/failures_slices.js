// A group of cases, or the way back to all of them.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-slice]");
  if (button) trigger("click", { slice: button.dataset.slice });
});
