// Who uses the store: tenants and their namespaces.

import { ask } from "./api.js";
import { h, value } from "./dom.js";
import { bytes, count, percent, whole } from "./format.js";
import { table } from "./table.js";

const found = (one) => (one.keys_looked_up ? one.keys_found / one.keys_looked_up : -1);

const USES = [
  { label: "Objects", of: (one) => one.objects, cell: (one) => value("objects", one.objects, count(one.objects)), number: true },
  { label: "Bytes", of: (one) => one.bytes, cell: (one) => value("bytes", one.bytes, bytes(one.bytes)), number: true },
  { label: "Looked up", of: (one) => one.keys_looked_up, cell: (one) => value("keys_looked_up", one.keys_looked_up, count(one.keys_looked_up)), number: true },
  { label: "Found", of: found, cell: (one) => value("keys_found", one.keys_found, one.keys_looked_up ? percent(found(one)) : "–"), number: true },
];
const TENANT = { label: "Tenant", of: (one) => one.tenant, cell: (one) => h("b", { "data-name": "tenant" }, one.tenant) };

export function tenants() {
  const summary = h("p", { class: "muted" });
  const owners = table("Tenants", [
    TENANT,
    { label: "Namespaces", of: (one) => one.namespaces, cell: (one) => whole(one.namespaces), number: true },
    ...USES,
    { label: "Read", of: (one) => one.read_bytes, cell: (one) => value("read_bytes", one.read_bytes, bytes(one.read_bytes)), number: true },
    { label: "Hits", of: (one) => one.hits, cell: (one) => value("hits", one.hits, count(one.hits)), number: true },
  ], { sorted: 3, descending: true, empty: "No tenant has stored anything." });
  const spaces = table("Namespaces", [
    { label: "Namespace", of: (one) => one.namespace, cell: (one) => (one.namespace ? h("b", { "data-name": "namespace" }, one.namespace) : h("i", { "data-name": "namespace" }, "default (no name)")) },
    { ...TENANT, cell: (one) => h("span", { "data-name": "tenant" }, one.tenant) },
    ...USES,
  ], { sorted: 3, descending: true, empty: "No namespace has anything." });
  const element = h(
    "div",
    {},
    h("div", { class: "heading" }, h("h1", {}, "Tenants")),
    h("p", { class: "muted" }, "Looked up and found: keys that the master was asked for since it started. Read and hits: what clients on nodes' hosts read since the nodes started, much of which the master never hears of."),
    owners.element,
    h("h2", {}, "Namespaces"),
    summary,
    spaces.element,
    h("p", { class: "muted note" }, "Which chains of keys are read most: ", h("a", { href: "#/prefixes" }, "hot prefixes"), "."),
  );
  return {
    element,
    load: () => ask("namespaces"),
    show(answer) {
      owners.show(answer.tenants);
      spaces.show(answer.namespaces);
      const shown = answer.namespaces.length;
      summary.textContent = answer.left_out ? `The ${shown} largest; ${count(answer.left_out)} more are not shown.` : "";
    },
  };
}
