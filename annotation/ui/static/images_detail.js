// The opened image stands above the grid that it was chosen in: it comes into sight, and Close goes back there.
watch("value", () => element.querySelector(".image-detail")?.scrollIntoView({ block: "nearest" }));

element.addEventListener("click", (event) => {
  if (!event.target.closest("[data-do=close]")) return;
  const { item } = element.querySelector(".image-detail").dataset;
  props.value = "";
  document.querySelector(`#data-images button[data-item="${item}"]`)?.focus();
});
