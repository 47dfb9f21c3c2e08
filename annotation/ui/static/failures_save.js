// Saves the file that the server has put together: {name, text}.
watch("value", () => {
  if (!props.value?.text) return;
  const url = URL.createObjectURL(new Blob([props.value.text], { type: "text/csv;charset=utf-8" }));
  Object.assign(document.createElement("a"), { href: url, download: props.value.name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
});
