// Keys of the Assess tab: Ctrl+Enter (or Cmd+Enter) in the prompt assesses; Ctrl+V anywhere puts an image in.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (!event.target.closest?.("#prompt")) return;
  event.preventDefault();
  document.querySelector("#assess:not(:disabled)")?.click();
});

document.addEventListener("paste", (event) => {
  const image = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
  const box = document.querySelector("#image");
  const field = box?.querySelector('input[type="file"]');
  if (!image || !field || !box.offsetParent) return; // no image, or another tab is open
  event.preventDefault();
  const files = new DataTransfer();
  files.items.add(image);
  field.files = files.files;
  field.dispatchEvent(new Event("change", { bubbles: true }));
});
