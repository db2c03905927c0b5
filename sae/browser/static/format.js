// Numbers as people read them: three significant digits, thousands apart, a real minus sign.

const GROUPED = new Intl.NumberFormat("en-US");

export function count(value) {
  return value == null ? "–" : GROUPED.format(value);
}

// 0.012345 -> 0.0123, 12345.6 -> 12,300, 0.0000123 -> 1.23e−5
export function number(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (size < 1e-3 || size >= 1e7) {
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    text = `${mantissa}e${power.replace("+", "")}`;
  } else if (size >= 10 ** digits) {
    text = GROUPED.format(Number(value.toPrecision(digits)));
  } else {
    text = value.toPrecision(digits);
    if (text.includes("e")) text = GROUPED.format(Number(text));
  }
  return text.replaceAll("-", "−");
}

// Always with its sign, so that colour is never the only sign of it.
export function signed(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "–";
  return value > 0 ? `+${number(value, digits)}` : number(value, digits);
}

// 0.000233 -> 1 in 4,290
export function oneIn(density) {
  if (density == null) return "–";
  if (!density) return "never";
  if (density >= 0.5) return percent(density);
  return `1 in ${GROUPED.format(Number((1 / density).toPrecision(density > 0.1 ? 2 : 3)))}`;
}

export function percent(share) {
  if (share == null || Number.isNaN(share)) return "–";
  const value = share * 100;
  // 99.998 must not read as 100
  if (value > 99.9 && value < 100) return `${(Math.floor(value * 1000) / 1000).toFixed(3)}%`;
  return `${number(value)}%`;
}

const PICTURES = { "\n": "↵", "\t": "⇥", "\r": "␍", " ": " " };
// controls, and characters that reverse or hide the text around them
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

// A token's text with invisible characters made visible.
export function visible(text) {
  return text.replace(HIDDEN, (c) => {
    if (PICTURES[c]) return PICTURES[c];
    const code = c.codePointAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    if (code === 127) return "␡";
    return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

// A token by itself, as in a list, where spaces alone would be invisible.
export function quoted(text, longest = 40) {
  const shown = visible(text ?? "");
  if (shown && !shown.trim()) return "␣".repeat(Math.min(shown.length, 8));
  return shown.length > longest ? `${shown.slice(0, longest)}…` : shown;
}
