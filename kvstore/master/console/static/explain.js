// Where a key is, as the master knows it.

import { ask, Refused } from "./api.js";
import { h, value } from "./dom.js";
import { bytes, duration, moment, whole } from "./format.js";
import { table } from "./table.js";

/** An argument for a shell, whatever it is. */
const quoted = (text) => (/^[\w./:@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

const REPLICAS = [
  { label: "Node", of: (one) => one.node_id, cell: (one) => h("b", {}, one.node_id) },
  { label: "Tier", of: (one) => one.tier, cell: (one) => one.tier },
  { label: "State", of: (one) => one.state, cell: (one) => h("span", {}, h("span", { class: `tag ${one.state === "alive" ? "good" : one.state === "dead" ? "bad" : "warn"}` }, one.state)) },
];

function command(known) {
  const parts = ["kvstore", "explain", quoted(known.key), "--tenant", quoted(known.tenant)];
  if (known.namespace) parts.push("--namespace", quoted(known.namespace));
  return h("pre", { tabindex: "0" }, h("code", {}, parts.join(" ")));
}

function described(known) {
  const { object } = known;
  if (object === null) {
    return [
      h("p", {}, h("b", {}, "The master knows of no such object."), " It was never put, or it was evicted, removed, flushed or has expired since. Each node remembers for a while why; ask them all:"),
      command(known),
    ];
  }
  const alive = object.replicas.filter((one) => one.state !== "dead" && one.state !== "restarting").length;
  const rows = table("Replicas", REPLICAS);
  rows.show(object.replicas);
  const facts = [
    ["Size", value("size", object.size, `${bytes(object.size)} (${whole(object.size)} bytes)`)],
    ["Replicas", `${object.replicas.length}, ${alive} reachable, ${object.replicas_wanted} wanted`],
    ["Put", object.created_unix_ms ? moment(object.created_unix_ms) : "unknown"],
    ["Expires", object.ttl_left_ms === null ? "never" : `in ${duration(object.ttl_left_ms)}`],
    ["Pin", object.pin],
    ["Version", object.version],
  ];
  return [
    h("p", {}, h("b", {}, alive ? "It can be read." : "It cannot be read: every node that holds it is down.")),
    h("dl", {}, facts.map(([name, fact]) => h("div", {}, h("dt", {}, name), h("dd", {}, fact)))),
    rows.element,
    h("p", { class: "muted" }, "When it was read last, node by node:"),
    command(known),
  ];
}

export function explain() {
  const field = (id, label, attributes) => h("label", { class: "field", for: id }, label, h("input", { id, autocomplete: "off", spellcheck: "false", ...attributes }));
  const result = h("section", { class: "card result", "aria-live": "polite", hidden: true });
  const form = h(
    "form",
    { class: "card form", onsubmit: (event) => { event.preventDefault(); look(); } },
    field("tenant", "Tenant", { value: "default", required: true }),
    field("namespace", "Namespace", { placeholder: "default (no name)" }),
    field("key", "Key", { required: true }),
    h("button", { type: "submit", class: "main" }, "Explain"),
  );
  const element = h("div", {}, h("div", { class: "heading" }, h("h1", {}, "Explain a key")), form, result);

  async function look() {
    const query = Object.fromEntries(["tenant", "namespace", "key"].map((name) => [name, element.querySelector(`#${name}`).value]));
    try {
      result.replaceChildren(...described(await ask("explain", query)));
    } catch (error) {
      if (!(error instanceof Refused)) {
        element.dispatchEvent(new CustomEvent("failed", { bubbles: true, detail: error }));
        return;
      }
      result.replaceChildren(h("p", {}, error.message));
    }
    result.hidden = false;
  }

  return { element, load: null, show() {} };
}
