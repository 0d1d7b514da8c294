// Every node: fill, work and what is wrong with it.

import { ask } from "./api.js";
import { h, meter, value } from "./dom.js";
import { bytes, count, duration, percent, perSecond, rate } from "./format.js";
import { table } from "./table.js";

const SHOWN = 100;

const filled = (part, whole) => (whole > 0 ? part / whole : -1);

function fill(label, name, part, whole, format) {
  if (!(whole > 0)) return h("span", { class: "muted" }, "–");
  const words = `${percent(part / whole)}, ${format(part)} of ${format(whole)}`;
  return h("span", { class: "cellfill" }, meter(label, part, whole, words), h("span", { class: "small" }, value(name, part, format(part)), " of ", value(`${name}.of`, whole, format(whole))));
}

function nvme(node) {
  if (node.nvme === null) return h("span", { class: "muted" }, "–");
  const is = node.nvme.state === "active" ? null : h("span", { class: "tag bad" }, node.nvme.state.replace("_", " "));
  if (node.nvme.object_bytes === undefined) return h("span", { class: "small" }, bytes(node.nvme.capacity_bytes));
  return h("span", {}, fill("NVMe", "nvme", node.nvme.object_bytes, node.nvme.capacity_bytes, bytes), is);
}

function named(node) {
  return h(
    "span",
    { class: "named" },
    h("b", { "data-name": "node_id" }, node.node_id),
    h("span", { class: "small muted" }, [node.endpoints.tcp.replace("tcp://", ""), node.software_version && `v${node.software_version}`].filter(Boolean).join(" · ")),
    node.problems.length ? h("ul", { class: "problems" }, node.problems.map((one) => h("li", {}, one))) : null,
  );
}

function state(node) {
  const kind = { alive: "good", dead: "bad" }[node.state] ?? "warn";
  const more = node.state === "dead" || node.state === "restarting"
    ? `for ${duration(node.last_heartbeat_age_ms)}`
    : node.drain_left_objects === null ? "" : `${count(node.drain_left_objects)} left`;
  return h("span", {}, h("span", { class: `tag ${kind}`, "data-name": "state" }, node.state), more ? h("span", { class: "small muted more" }, more) : null);
}

const COLUMNS = [
  { label: "Node", of: (node) => node.node_id, cell: named },
  { label: "State", of: (node) => node.state, cell: state },
  { label: "Memory", of: (node) => filled(node.used_bytes, node.capacity_bytes), cell: (node) => fill("Memory", "used_bytes", node.used_bytes, node.capacity_bytes, bytes), number: true },
  { label: "Index", of: (node) => filled(node.index_entries, node.index_limit), cell: (node) => fill("Index", "index_entries", node.index_entries, node.index_limit, count), number: true },
  { label: "NVMe", of: (node) => filled(node.nvme?.object_bytes ?? 0, node.nvme?.capacity_bytes ?? 0), cell: nvme, number: true },
  { label: "Objects", of: (node) => node.replicas, cell: (node) => value("replicas", node.replicas, count(node.replicas)), number: true },
  { label: "Read", of: (node) => node.read_bytes_per_s, cell: (node) => rate(node.read_bytes_per_s), number: true },
  { label: "Written", of: (node) => node.put_bytes_per_s, cell: (node) => rate(node.put_bytes_per_s), number: true },
  { label: "Evicted", of: (node) => node.evictions_per_s, cell: (node) => perSecond(node.evictions_per_s), number: true },
];

export function nodes() {
  let found = [];
  let all = false;
  const filter = h("input", { type: "search", id: "filter", autocomplete: "off", placeholder: "name, state or label", oninput: () => draw() });
  const summary = h("p", { class: "muted", role: "status" });
  const list = table("Nodes", COLUMNS, { empty: "No node." });
  const more = h("button", { type: "button", hidden: true, onclick: () => { all = true; draw(); } });
  const element = h(
    "div",
    {},
    h("div", { class: "heading" }, h("h1", {}, "Nodes"), h("label", { class: "field", for: "filter" }, "Filter ", filter)),
    summary,
    list.element,
    more,
  );

  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    const text = (node) => [node.node_id, node.state, ...Object.entries(node.labels).map((pair) => pair.join("="))].join(" ").toLowerCase();
    const fitting = found.filter((node) => text(node).includes(wanted));
    // Those with problems come first where not all are shown.
    const chosen = all ? fitting : [...fitting].sort((a, b) => b.problems.length - a.problems.length || (b.state === "dead") - (a.state === "dead")).slice(0, SHOWN);
    const states = {};
    for (const node of fitting) states[node.state] = (states[node.state] ?? 0) + 1;
    const words = Object.entries(states).map(([name, ones]) => `${ones} ${name}`);
    const troubled = fitting.filter((node) => node.problems.length).length;
    summary.replaceChildren(value("shown", fitting.length, `${fitting.length}`), fitting.length === 1 ? " node: " : " nodes: ", words.join(", ") || "none", troubled ? `; ${troubled} with problems` : "", ". Rates are of the last 10 to 20 seconds.");
    list.show(chosen);
    more.hidden = chosen.length === fitting.length;
    more.textContent = `Show all ${fitting.length}`;
  }

  return {
    element,
    load: () => ask("nodes"),
    show(answer) {
      found = answer.nodes;
      draw();
    },
  };
}
