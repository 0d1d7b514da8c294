// Which chains of keys are read most. Keys are of clients: text, whatever they hold.

import { ask } from "./api.js";
import { h, value } from "./dom.js";
import { duration, perSecond, rate } from "./format.js";
import { table } from "./table.js";

const COLUMNS = [
  { label: "First key", of: (one) => one.key, cell: (one) => h("b", { "data-name": "key", dir: "auto" }, one.key) },
  { label: "Namespace", of: (one) => one.namespace, cell: (one) => (one.namespace ? h("span", { "data-name": "namespace" }, one.namespace) : h("i", { "data-name": "namespace" }, "default (no name)")) },
  { label: "Tenant", of: (one) => one.tenant, cell: (one) => h("span", { "data-name": "tenant" }, one.tenant) },
  { label: "Objects read", of: (one) => one.reads_per_s, cell: (one) => value("reads_per_s", one.reads_per_s, perSecond(one.reads_per_s)), number: true },
  { label: "Read", of: (one) => one.read_bytes_per_s, cell: (one) => value("read_bytes_per_s", one.read_bytes_per_s, rate(one.read_bytes_per_s)), number: true },
];

export function prefixes() {
  const summary = h("p", { class: "muted" });
  const list = table("Hot prefixes", COLUMNS, { sorted: 3, descending: true, empty: "Nothing was read lately." });
  const element = h(
    "div",
    {},
    h("div", { class: "heading" }, h("h1", {}, "Hot prefixes")),
    summary,
    list.element,
    h("p", { class: "muted note" }, "A chain is named by its first key: every object that was put with a parent counts for where its chain begins, one without a parent for itself. Nodes count reads from memory, by shared memory or by socket; rates are never above the truth. Among very many chains that are read alike, some are missing."),
  );
  return {
    element,
    load: () => ask("prefixes"),
    show(answer) {
      list.show(answer.prefixes);
      summary.textContent = `The ${answer.prefixes.length} most read now. A read counts half after ${duration(answer.half_life_ms)}.`;
    },
  };
}
