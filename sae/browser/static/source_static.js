// The source of data of an exported page: scripts beside it, which also work from file://, or ranges of one packed file.

import { queryRows } from "./static_table.js";

export class StaticSource {
  live = false;

  constructor(data) {
    this.data = data;
    this.index = new Map(data.latents.map((latent, place) => [latent, place]));
    this.waiting = new Map();
    this.shards = new Map();
    globalThis.SPARSIGHT_SHARD = (number, content) => this.waiting.get(number)?.(content);
  }

  runs = async () => [this.data.info];
  report = async () => this.data.report;
  logits = async (_, latent) => (await this.whole(latent)).logits ?? refuse("The logits were not exported.");
  neighbours = async (_, latent) => (await this.whole(latent)).neighbours;
  coactive = async (_, latent) => (await this.whole(latent)).coactive;
  record = async (_, latent) => (await this.whole(latent)).record;
  imageAddress = (_, document) => `data/images/${document}.png`;
  atomAddress = (_, latent) => `data/atoms/${latent}.png`;

  async window(_, query, start, count, find) {
    const places = queryRows(this.data, query);
    const row = find == null ? null : places.indexOf(this.index.get(find) ?? -1);
    return {
      total: places.length,
      of: this.data.latents.length,
      rows: Array.from(places.subarray(start, start + count), (place) => this.row(place)),
      found: row === -1 ? null : row,
    };
  }

  async search(_, text) {
    const wanted = text.trim().toLowerCase();
    const hits = [];
    for (let place = 0; place < this.data.latents.length && hits.length < 50; place++) {
      const row = this.row(place);
      const fields = { label: row.label, name: row.name, token: row.token, logits: this.data.logits[place] };
      const where = Object.keys(fields).find((field) => fields[field]?.toLowerCase().includes(wanted));
      if (where) hits.push({ ...row, where, snippet: fields[where] });
    }
    return hits;
  }

  row(place) {
    const { latents, columns, tokens, marks } = this.data;
    const latent = latents[place];
    const numbers = Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column[place]]));
    return { latent, ...numbers, token: tokens[place], name: null, label: null, bookmark: false, ...marks[latent] };
  }

  async whole(latent) {
    const place = this.index.get(latent);
    if (place == null) refuse(`Latent ${latent} is not part of this export.`);
    const shard = Math.floor(place / this.data.per_shard);
    if (!this.shards.has(shard)) {
      const loading = this.shard(shard);
      this.shards.set(shard, loading);
      loading.catch(() => this.shards.delete(shard));
    }
    return (await this.shards.get(shard))[place % this.data.per_shard];
  }

  // A file:// page may not fetch, but it may run a script beside it.
  async shard(number) {
    if (location.protocol !== "file:") {
      const packed = await this.range(number);
      if (packed) return unpack(packed);
    }
    const content = await new Promise((resolve, reject) => {
      this.waiting.set(number, resolve);
      const script = document.createElement("script");
      script.src = `data/shard-${String(number).padStart(5, "0")}.js`;
      script.onload = () => script.remove();
      script.onerror = () => reject(new Error(`${script.src} cannot be read`));
      document.head.append(script);
    });
    return unpack(Uint8Array.from(atob(content), (c) => c.charCodeAt(0)));
  }

  // null where the host does not serve ranges: then the scripts are loaded
  async range(number) {
    if (this.ranges === false || !this.data.offsets) return null;
    const [from, to] = [this.data.offsets[number], this.data.offsets[number + 1]];
    const response = await fetch("data/records.bin", { headers: { Range: `bytes=${from}-${to - 1}` } });
    if (response.status !== 206) {
      this.ranges = false;
      await response.body?.cancel();
      return null;
    }
    return new Uint8Array(await response.arrayBuffer());
  }
}

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function refuse(message) {
  throw new Error(message);
}
