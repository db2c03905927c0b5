// Light, dark, or as the system says; the choice is kept in this browser.

import { useEffect, useState } from "./view.js";

const THEMES = ["auto", "light", "dark"];

export function useTheme() {
  const [theme, set] = useState(kept);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("sparsight-theme", theme);
    } catch {
      // a browser that keeps nothing keeps no choice of colours either
    }
  }, [theme]);
  return [theme, () => set(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length])];
}

function kept() {
  try {
    const theme = localStorage.getItem("sparsight-theme");
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}
