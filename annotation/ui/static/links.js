// Links within the page: by its <base> they would load the page anew, without what its address asks for.
document.addEventListener("click", (event) => {
  const target = event.target.closest?.('a[href^="#"]')?.getAttribute("href");
  if (!target) return;
  event.preventDefault();
  document.querySelector(target)?.scrollIntoView();
});
