// The cluster at a glance, and its last hours.

import { ask } from "./api.js";
import { chart } from "./chart.js";
import { h, meter, strip, value } from "./dom.js";
import { bytes, count, duration, percent, rate, whole } from "./format.js";

const WINDOWS = [["10 min", 600_000], ["1 h", 3_600_000], ["6 h", 21_600_000]];
const REASONS = {
  absent: "never stored, as far as is known",
  evicted: "evicted to make room",
  expired: "TTL has passed",
  removed: "removed",
  flushed: "namespace flushed",
  node_down: "only on nodes that are down",
  restarting: "only on nodes that are being restarted",
  version: "another version there",
  checksum: "checksum wrong",
  rebuilding: "master still collects placements",
  io_error: "disk or memory failed",
  unavailable: "nobody could be asked",
  index_full: "evicted for an index entry",
  buffer_too_small: "longer than the buffer",
};
const CAUSES = {
  memory: "room in memory",
  index: "an entry of the index",
  nvme: "room on NVMe",
  expired: "TTL has passed",
  unknown: "not told (older node)",
};
const PATHS = { shm: "shared memory", socket: "TCP and Unix sockets", ucx: "RDMA (UCX)" };

const sum = (counts) => Object.values(counts).reduce((total, one) => total + one, 0);
const perPoint = (history, column) => history[column].map((one, at) => (1000 * one) / Math.max(1, history.length_ms[at]));

function ratios(history) {
  return history.hits.map((hits, at) => {
    const wanted = hits + sum(history.misses[at]);
    return wanted ? hits / wanted : null;
  });
}

function figure(label, shown, more) {
  return h("section", { class: "card figure" }, h("h3", {}, label), h("p", { class: "large" }, shown), h("p", { class: "muted" }, more));
}

/** Tokens and seconds of prefill, or why they are unknown. */
function tokens(label, which, saved, explained) {
  const [of, seconds, size] = [saved[`${which}_tokens`], saved[`${which}_s`], saved[`${which}_bytes`]];
  if (of === null) {
    const set = ["set ", h("code", {}, "bytes_per_token"), " to see tokens"];
    return figure(label, value(`${which}_bytes`, size, bytes(size)), [explained, "; ", ...set]);
  }
  const time = seconds === null ? [] : [", ", value(`${which}_s`, seconds, duration(1000 * seconds)), " of prefill"];
  const unit = h("span", { class: "unit" }, " tokens");
  return figure(label, [value(`${which}_tokens`, of, count(of)), unit], [explained, ...time]);
}

function figures(found) {
  const { traffic, savings } = found;
  const missed = sum(traffic.misses);
  const gone = sum(traffic.evictions);
  const top = Object.entries(traffic.evictions).sort(([, a], [, b]) => b - a)[0];
  return [
    figure("Hit ratio", value("hit_ratio", traffic.hit_ratio, percent(traffic.hit_ratio)), [
      value("hits", traffic.hits, count(traffic.hits)), " read, ", value("misses", missed, count(missed)), " not found",
    ]),
    figure("Read", value("read_bytes_per_s", traffic.read_bytes_per_s, rate(traffic.read_bytes_per_s)), [
      value("read_bytes", traffic.read_bytes, bytes(traffic.read_bytes)), " in all",
    ]),
    figure("Written", value("put_bytes_per_s", traffic.put_bytes_per_s, rate(traffic.put_bytes_per_s)), [
      value("put_bytes", traffic.put_bytes, bytes(traffic.put_bytes)), " in ", value("puts_ok", traffic.puts.ok, count(traffic.puts.ok)), " objects",
      traffic.puts.failed ? `, ${count(traffic.puts.failed)} failed` : "",
    ]),
    figure("Evicted", value("evictions", gone, count(gone)), gone ? `mostly for ${CAUSES[top[0]]}` : "nothing had to go"),
    tokens("Prefill saved", "saved", savings, "read in place of computed"),
    tokens("Computed again", "wasted", savings, "stored once, and lost since"),
  ];
}

function fills(found) {
  const rows = [
    ["Memory", "used_bytes", "capacity_bytes", bytes],
    ["Index", "index_entries", "index_limit", count],
    ["NVMe", "nvme_object_bytes", "nvme_capacity_bytes", bytes],
  ].filter(([, , capacity]) => found[capacity] > 0);
  return rows.map(([label, used, capacity, format]) => {
    const words = `${format(found[used])} of ${format(found[capacity])}`;
    return h(
      "div",
      { class: "fill" },
      h("span", { class: "name" }, label),
      meter(label, found[used], found[capacity], words),
      h("span", { class: "muted" }, value(used, found[used], format(found[used])), " of ", value(capacity, found[capacity], format(found[capacity]))),
    );
  });
}

/** Counts by name, the largest first, each with its bar; zeros are left out. */
function breakdown(title, name, counts, words, format, none) {
  const rows = Object.entries(counts).filter(([, one]) => one > 0).sort(([, a], [, b]) => b - a);
  const all = sum(counts);
  return h(
    "section",
    { class: "card" },
    h("h3", {}, title),
    rows.length
      ? h("ul", { class: "parts" }, rows.map(([key, one]) =>
          h("li", {},
            h("span", { class: "name" }, h("b", {}, key), h("span", { class: "muted" }, words[key] ?? "")),
            h("span", { class: "number" }, value(`${name}.${key}`, one, format(one))),
            strip(one, all),
          )))
      : h("p", { class: "muted" }, none),
  );
}

export function overview() {
  let length = Number(sessionStorage.getItem("kvstore-window")) || 3_600_000;
  const windows = h(
    "fieldset",
    { class: "windows" },
    h("legend", { class: "unseen" }, "Time shown"),
    WINDOWS.map(([label, ms]) =>
      h("label", {}, h("input", { type: "radio", name: "window", value: ms, checked: ms === length, onchange: () => choose(ms) }), h("span", {}, label)),
    ),
  );
  const covered = h("p", { class: "muted" });
  const cards = h("div", { class: "figures" });
  const inside = h("section", { class: "card fills" });
  const parts = h("div", { class: "grid three" });
  const charts = [
    chart("Hit ratio", [{ name: "hit ratio", of: ratios }], { format: percent, top: 1 }),
    chart("Throughput", [
      { name: "read", of: (history) => perPoint(history, "read_bytes") },
      { name: "written", of: (history) => perPoint(history, "put_bytes") },
    ], { format: rate }),
    chart("Evictions", [{ name: "evictions", of: (history) => history.evictions.map((one, at) => (1000 * sum(one)) / Math.max(1, history.length_ms[at])) }], { format: (one) => `${count(one)}/s` }),
    chart("Memory in use", [{ name: "used", of: (history) => history.used_bytes }], { format: bytes, base: 1024 }),
  ];
  const element = h(
    "div",
    {},
    h("div", { class: "heading" }, h("h1", {}, "Overview"), windows),
    covered,
    h("h2", { class: "unseen" }, "Lately"),
    cards,
    inside,
    h("h2", {}, "Over time"),
    h("div", { class: "grid two" }, charts.map((one) => one.element)),
    h("h2", {}, "Why"),
    parts,
  );

  function choose(ms) {
    length = ms;
    sessionStorage.setItem("kvstore-window", ms);
    element.dispatchEvent(new Event("again", { bubbles: true }));
  }

  return {
    element,
    load: () => ask("overview", { window_ms: length, history: "1" }),
    show(found) {
      const { traffic } = found;
      covered.replaceChildren(
        `The last ${duration(found.window.length_ms)}`,
        found.window.length_ms < length * 0.98 ? ", as long as this master has recorded. " : ". ",
        value("objects", found.objects, whole(found.objects)), " objects, ",
        value("object_bytes", found.object_bytes, bytes(found.object_bytes)), ", ",
        value("replicas", found.replicas, whole(found.replicas)), " replicas.",
        found.unreachable_objects ? ` ${whole(found.unreachable_objects)} more are on nodes that are down.` : "",
      );
      cards.replaceChildren(...figures(found));
      inside.replaceChildren(h("h2", { class: "unseen" }, "How full it is"), ...fills(found));
      parts.replaceChildren(
        breakdown("Misses by reason", "misses", traffic.misses, REASONS, count, "No key was missed."),
        breakdown("Evictions by cause", "evictions", traffic.evictions, CAUSES, count, "Nothing was evicted."),
        breakdown("Read by path", "read_bytes", traffic.read_bytes_by_path, PATHS, bytes, "Nothing was read."),
      );
      for (const one of charts) one.show(found.history);
    },
  };
}
