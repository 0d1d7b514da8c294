// What happened lately.

import { ask } from "./api.js";
import { h } from "./dom.js";
import { clock, count, moment } from "./format.js";

function when(event) {
  const from = h("time", { datetime: new Date(event.unix_ms).toISOString(), title: moment(event.unix_ms) }, clock(event.unix_ms));
  return event.last_unix_ms > event.unix_ms + 1000 ? [from, ` – ${clock(event.last_unix_ms)}`] : [from];
}

function row(event) {
  const warning = event.level === "warning";
  return h(
    "li",
    { class: `event ${event.level}`, "data-kind": event.kind },
    h("span", { class: "when small muted" }, when(event)),
    h("span", { class: warning ? "tag bad" : "tag" }, warning ? "⚠ " : "", event.kind.replace("_", " ")),
    h("span", { class: "what" }, h("b", {}, event.node_id || "cluster"), " ", event.count > 1 ? `${count(event.count)} ` : "", event.text),
  );
}

export function events() {
  let found = [];
  const only = h("input", { type: "checkbox", id: "warnings", onchange: () => draw() });
  const list = h("ol", { class: "events card", "aria-label": "Events, the newest first" });
  const element = h(
    "div",
    {},
    h("div", { class: "heading" }, h("h1", {}, "Events"), h("label", { class: "field", for: "warnings" }, only, " Warnings only")),
    h("p", { class: "muted" }, "The last 500 since this master started. What lasts is one event that counts for ten minutes."),
    list,
  );

  function draw() {
    const chosen = found.filter((event) => !only.checked || event.level === "warning");
    list.replaceChildren(...(chosen.length ? chosen.map(row) : [h("li", { class: "muted" }, "None.")]));
  }

  return {
    element,
    load: () => ask("events"),
    show(answer) {
      found = answer.events;
      draw();
    },
  };
}
