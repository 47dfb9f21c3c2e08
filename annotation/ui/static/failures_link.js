() => {
  // A link that names a tab opens it, once the page has drawn the tabs.
  const tab = new URLSearchParams(location.search).get("tab");
  if (!/^[a-z]+$/.test(tab ?? "")) return;
  const open = () => {
    // On narrow pages some tabs are in a menu, whose buttons have nothing but their text.
    const inMenu = [...document.querySelectorAll(".overflow-menu button")];
    const button =
      document.getElementById(`${tab}-tab-button`) ??
      inMenu.find((each) => each.textContent.trim().toLowerCase().startsWith(tab.slice(0, 5)));
    button?.click();
    return Boolean(button);
  };
  if (open()) return;
  const watch = new MutationObserver(() => open() && watch.disconnect());
  watch.observe(document.body, { childList: true, subtree: true });
  setTimeout(() => watch.disconnect(), 10000);
}
