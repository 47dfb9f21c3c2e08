// Of both parts of the tab: its buttons say what they do by data-action, or by their class for a model.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const repository = button.closest("article")?.querySelector("[name=repository]")?.value;
  // An upload takes minutes, in which the other buttons go on working.
  const isUpload = button.matches(".push[data-confirmed]");
  for (const each of isUpload ? [button] : element.querySelectorAll("button")) each.disabled = true;
  button.textContent = isUpload ? "Pushing …" : "One moment …"; // all comes anew once it is done, or has failed
  trigger(isUpload ? "submit" : "click", {
    action: button.dataset.action ?? button.className,
    model: button.dataset.model,
    repository,
    confirmed: button.dataset.confirmed === "true",
  });
});

// The field for a repository is there because somebody wants to type into it; Enter pushes.
// In the next frame: then the message above has its height.
watch("value", () =>
  requestAnimationFrame(() => {
    const field = element.querySelector("[name=repository]");
    field?.focus();
    field?.scrollIntoView({ block: "nearest" });
  }),
);
element.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.name === "repository")
    event.target.closest("article").querySelector(".push").click();
});
