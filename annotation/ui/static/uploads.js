// Files that people drop, choose or paste. Gradio's boxes pass over what is no image by its name, a dropped one
// without a word. Here they take any file, for the server to say what it is (m3agiqa/images.py), and what
// cannot be sent at all is told below the box.
const BOXES = "#image, #compare-files, #import-files";
const MEGABYTE = 2 ** 20;

function tellBelow(box, sentence) {
  box.parentElement.querySelector(":scope > .upload-problem")?.remove();
  if (!sentence) return;
  const problem = document.createElement("p");
  problem.className = "upload-problem";
  problem.role = "alert";
  problem.textContent = sentence;
  box.after(problem);
}

// Puts files into the box's own field, as if they had been chosen there. A drop elsewhere in the box than on
// Gradio's own target would leave the page.
function give(box, files, folders = []) {
  const most = window.gradio_config.max_file_size;
  const problems = folders.map((name) => `${name} is a folder; choose the files in it.`);
  const taken = new DataTransfer();
  for (const file of files) {
    if (folders.includes(file.name)) continue;
    if (file.size > most) {
      const [size, limit] = [file.size, most].map((bytes) => Math.ceil(bytes / MEGABYTE).toLocaleString("en"));
      problems.push(`${file.name} has ${size} MB; at most ${limit} MB can be uploaded.`);
    } else if (box.id === "image" && taken.items.length) {
      problems.push(`${file.name} was left out: this box takes one image. Compare takes several.`);
    } else {
      taken.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, { type: "image/*" }));
    }
  }
  if (!files.length) problems.push("This is not a file. Save the image, or copy it and paste it here.");
  tellBelow(box, problems.join(" "));
  if (!taken.items.length) return;
  const field = box.querySelector('input[type="file"]');
  field.files = taken.files;
  field.dispatchEvent(new CustomEvent("change", { detail: "given" }));
}

for (const kind of ["dragover", "drop"]) {
  document.addEventListener(
    kind,
    (event) => {
      const box = event.target.closest?.(BOXES);
      if (!box) return;
      event.preventDefault();
      if (kind === "dragover") return;
      event.stopImmediatePropagation();
      event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true })); // Gradio marks the box meanwhile
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
      const folders = entries.filter((entry) => entry?.isDirectory).map((entry) => entry.name);
      give(box, [...event.dataTransfer.files], folders);
    },
    true,
  );
}

document.addEventListener(
  "change",
  (event) => {
    const box = event.target.type === "file" && event.target.closest(BOXES);
    if (!box || event.detail === "given" || !event.target.files.length) return;
    event.stopImmediatePropagation();
    give(box, [...event.target.files]);
  },
  true,
);

document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  const file = files.find((each) => each.type.startsWith("image/")) ?? files[0];
  const box = document.querySelector("#image");
  if (!file || !box?.offsetParent) return; // no file, or another tab is open
  event.preventDefault();
  give(box, [file]);
});
