// A button with data-… attributes makes a click event that has them.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && Object.keys(button.dataset).length) trigger("click", { ...button.dataset });
});
