// State shared by all parts of the page: the source of data, the runs, and messages to the reader.

import { createContext, useContext, useEffect, useRef, useState } from "./view.js";

export const AppState = createContext(null);

export const useApp = () => useContext(AppState);
export const useSource = () => useContext(AppState).source;

// Loads something whenever `keys` change: {value, error, loading}. The old value stays until the new one has arrived.
export function useLoaded(load, keys) {
  const [state, set] = useState({ value: null, error: null, loading: true });
  const turn = useRef(0);
  useEffect(() => {
    const mine = ++turn.current;
    set((old) => ({ ...old, loading: true }));
    Promise.resolve()
      .then(load)
      .then(
        (value) => mine === turn.current && set({ value, error: null, loading: false }),
        (error) => mine === turn.current && set({ value: null, error: error.message, loading: false }),
      );
    return () => turn.current++;
  }, keys);
  return state;
}
