// The form in which one aspect is corrected (annotation/ui/correction_form/form.py), for the scripts of both tabs.

function newToken() {
  const random = crypto.getRandomValues(new Uint8Array(16)); // crypto.randomUUID needs https
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function readForm(form) {
  const { description, score, others, comment } = form.elements;
  const checked = [...form.querySelectorAll("[name=tags]:checked")].map((box) => box.value);
  const written = others.value.split(",").map((tag) => tag.trim()).filter(Boolean);
  return {
    description: description.value,
    score: Number(score.value),
    tags: [...checked, ...written],
    comment: comment.value,
  };
}

function fillTags(form, tags) {
  const boxes = [...form.querySelectorAll("[name=tags]")];
  for (const box of boxes) box.checked = tags.includes(box.value);
  form.elements.others.value = tags.filter((tag) => !boxes.some((box) => box.value === tag)).join(", ");
}

function showScore(form) {
  form.querySelector("output").textContent = Number(form.elements.score.value).toFixed(1);
}
