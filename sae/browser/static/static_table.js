// Filters and sorts the table of an exported page, as sae/browser/listing.py does on the server.

const orders = new Map();
let last = { key: null, rows: null };

// The places (not latent numbers) of the matching rows, in order.
export function queryRows(data, query) {
  const key = JSON.stringify(query);
  if (last.key === key) return last.rows;
  const order = ordered(data, query.sort);
  const tests = [...ranges(data, query.filter), ...marked(data, query.mark), ...worded(data, query.text)];
  const rows = tests.length ? order.filter((place) => tests.every((test) => test(place))) : order;
  last = { key, rows };
  return rows;
}

function ordered(data, sort) {
  if (!orders.has(sort)) {
    const down = sort.startsWith("-");
    const name = sort.replace(/^-/, "");
    const order = Uint32Array.from(data.latents.keys());
    const column = name === "latent" ? data.latents : data.columns[name];
    if (name === "name") sortByName(data, order, down);
    else if (column) order.sort((a, b) => compare(column[a], column[b], down) || a - b);
    orders.set(sort, order);
  }
  return orders.get(sort);
}

// rows without a value always come last
function compare(a, b, down) {
  if (a == null || b == null) return (a == null) - (b == null);
  return down ? b - a : a - b;
}

function sortByName(data, order, down) {
  const titles = data.latents.map((latent) => data.marks[latent]?.label || data.marks[latent]?.name || null);
  const folded = titles.map((title) => title?.toLowerCase());
  order.sort((a, b) => {
    if (!folded[a] || !folded[b]) return !folded[a] - !folded[b] || a - b;
    const by = folded[a] < folded[b] ? -1 : folded[a] > folded[b] ? 1 : a - b;
    return down ? -by : by;
  });
}

function ranges(data, filter) {
  if (!filter) return [];
  return filter.split(",").map((part) => {
    const [name, bounds = ""] = part.split(":");
    const [low, high] = bounds.split("..");
    const [from, to] = [low ? Number(low) : -Infinity, high ? Number(high) : Infinity];
    const column = name === "latent" ? data.latents : data.columns[name];
    if (!column || Number.isNaN(from) || Number.isNaN(to)) throw new Error(`filter ${part}: cannot be read`);
    return (place) => column[place] != null && column[place] >= from && column[place] <= to;
  });
}

function marked(data, mark) {
  if (!mark) return [];
  const field = { named: "name", labelled: "label", bookmarked: "bookmark" }[mark];
  return [(place) => Boolean(data.marks[data.latents[place]]?.[field])];
}

function worded(data, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const holds = (value) => value?.toLowerCase().includes(wanted);
  return [
    (place) => {
      const mark = data.marks[data.latents[place]] ?? {};
      return holds(data.tokens[place]) || holds(mark.name) || holds(mark.label) || holds(mark.note);
    },
  ];
}
