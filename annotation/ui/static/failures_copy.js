// Copies the address of the view that the link beside the button leads to.
element.addEventListener("click", async (event) => {
  if (!event.target.closest("button")) return;
  const { href } = element.querySelector("a");
  const told = element.querySelector("[role=status]");
  try {
    await navigator.clipboard.writeText(href);
    told.textContent = "Copied";
  } catch {
    // Browsers have no clipboard for pages that came over plain HTTP from another machine.
    const field = Object.assign(document.createElement("textarea"), { value: href });
    element.append(field);
    field.select();
    told.textContent = document.execCommand("copy") ? "Copied" : "Copy the address of the link";
    field.remove();
  }
});
