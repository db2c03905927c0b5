// Light, dark, or the system's colours; the choice is kept in this browser.

import { useEffect, useState } from "./view.js";

const THEMES = ["auto", "light", "dark"];

export function useTheme() {
  const [theme, set] = useState(kept);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("sparsight-theme", theme);
    } catch {
      // without storage the choice of colours is not kept
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
