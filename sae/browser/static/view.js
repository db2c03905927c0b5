// Preact's functions, and `html` for markup, for every part of the page.

import { h } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { Component, Fragment, createContext, h, render } from "./vendor/preact.js";
export {
  useCallback,
  useContext,
  useEffect,
  useLayoutEffect,
  useMemo,
  useReducer,
  useRef,
  useState,
} from "./vendor/hooks.js";

export const html = htm.bind(h);

// Class names that apply: classes("row", selected && "selected").
export const classes = (...names) => names.filter(Boolean).join(" ");
