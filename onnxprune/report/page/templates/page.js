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
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    for (const folded of document.querySelectorAll("details")) folded.open = true;
    document.dispatchEvent(new Event("repaint"));
  });
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

  // the buttons of a table are one stop of the tab key; arrows go from one to the next
  for (const table of document.querySelectorAll("table")) {
    const chips = [...table.querySelectorAll("button.chip")];
    const stop = (at) => chips.forEach((c, k) => { c.tabIndex = k === at ? 0 : -1; });
    stop(0);
    table.addEventListener("keydown", (event) => {
      const at = chips.indexOf(document.activeElement), last = chips.length - 1;
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
      if (at < 0 || to === undefined || to < 0 || to > last) return;
      stop(to); chips[to].focus(); event.preventDefault();
    });
    table.addEventListener("focusin", (event) => { const at = chips.indexOf(event.target); if (at >= 0) stop(at); });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  for (const copy of document.querySelectorAll(".copy")) copy.addEventListener("click", async () => {
    const code = copy.parentElement.querySelector("code");
    try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); copy.textContent = "Selected"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
})();
