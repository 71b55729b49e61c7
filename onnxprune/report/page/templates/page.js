"use strict";
(() => {
  // light and dark: as the system has it, or as chosen here
  const themes = ["auto", "light", "dark"], root = document.documentElement, button = document.getElementById("theme");
  const kept = { get: () => { try { return localStorage.getItem("onnxprune-theme"); } catch { return null; } },
                 set: (v) => { try { localStorage.setItem("onnxprune-theme", v); } catch { /* files may have none */ } } };
  let theme = themes.includes(kept.get()) ? kept.get() : "auto";
  const show = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = "Theme: " + theme;
    document.dispatchEvent(new Event("repaint"));
  };
  button.addEventListener("click", () => { theme = themes[(themes.indexOf(theme) + 1) % 3]; kept.set(theme); show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("repaint")));
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; document.dispatchEvent(new Event("repaint")); });
  addEventListener("afterprint", show);
  show();

  // what a chart's marks say, at once instead of after a second
  const tip = document.getElementById("tip");
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest?.("[data-tip]");
    if (!mark) { tip.hidden = true; return; }
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
  });
  document.addEventListener("pointermove", (event) => {
    if (tip.hidden) return;
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = (event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18) + "px";
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

  // a group that is named anywhere is shown in the graph
  document.addEventListener("click", (event) => {
    const named = event.target.closest?.("[data-group]");
    if (named) document.dispatchEvent(new CustomEvent("group", { detail: named.dataset.group }));
  });

  for (const copy of document.querySelectorAll(".copy")) copy.addEventListener("click", async () => {
    const code = copy.parentElement.querySelector("code");
    try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); copy.textContent = "Selected"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
})();
