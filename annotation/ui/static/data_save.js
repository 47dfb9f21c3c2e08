// Saves the file that the server has made ready: {path, name}.
watch("value", () => {
  if (!props.value?.path) return;
  const { root: base = "", api_prefix: prefix = "/gradio_api" } = window.gradio_config ?? {};
  const href = `${base}${prefix}/file=${props.value.path.split("/").map(encodeURIComponent).join("/")}`;
  Object.assign(document.createElement("a"), { href, download: props.value.name }).click();
});
