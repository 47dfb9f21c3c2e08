element.addEventListener("click", (event) => {
  const button = event.target.closest("button.promote");
  if (!button) return;
  for (const each of element.querySelectorAll("button.promote")) each.disabled = true;
  button.textContent = "Loading …"; // the list comes anew once the model is in service, or has failed
  trigger("click", { model: button.dataset.model, confirmed: button.dataset.confirmed === "true" });
});
