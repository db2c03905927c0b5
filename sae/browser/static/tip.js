// A small box about the token under the pointer or with the focus.

import { html, useEffect, useState } from "./view.js";

export function TokenTip() {
  const [tip, set] = useState(null);
  useEffect(() => {
    const show = (event) => {
      const token = event.target.closest?.("[data-tip]");
      if (!token) return set(null);
      const box = token.getBoundingClientRect();
      set({ text: token.dataset.tip, left: Math.min(box.left, innerWidth - 260), top: box.bottom + 6 });
    };
    const hide = () => set(null);
    document.addEventListener("pointerover", show);
    document.addEventListener("focusin", show);
    document.addEventListener("focusout", hide);
    addEventListener("scroll", hide, true);
    return () => {
      document.removeEventListener("pointerover", show);
      document.removeEventListener("focusin", show);
      document.removeEventListener("focusout", hide);
      removeEventListener("scroll", hide, true);
    };
  }, []);
  if (!tip) return null;
  return html`<div class="tip" role="tooltip" data-testid="tip" dir="auto" style=${{ left: `${tip.left}px`, top: `${tip.top}px` }}>${tip.text}</div>`;
}
