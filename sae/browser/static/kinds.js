// Words that depend on the kind of run. An image whose code has several places counts as that many.

const WORDS = {
  language: { units: "tokens", named: "Name or token", find: "name, label, token", diversity: "tokens", one: "one a document" },
  image: { units: "images", named: "Name or image label", find: "name, label", diversity: "labels", one: "one an image" },
};

// Why text cannot be steered; "" where it can.
export const noSteering = (features) =>
  features.no_next_token ? `No steering: the model predicts no next token (${features.no_next_token}).` : "";

export function wordsOf(features) {
  const words = WORDS[features.kind];
  return features.positions > 1 ? { ...words, units: "places of images" } : words;
}
