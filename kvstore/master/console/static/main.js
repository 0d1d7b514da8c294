// Chooses the view, refreshes it, and asks for a token where the master wants one.

import { ask, forgetToken, hasToken, keepToken, Refused, TokenWanted } from "./api.js";
import { h } from "./dom.js";
import { events } from "./events.js";
import { explain } from "./explain.js";
import { clock, duration } from "./format.js";
import { nodes } from "./nodes.js";
import { overview } from "./overview.js";
import { prefixes } from "./prefixes.js";
import { tenants } from "./tenants.js";

const REFRESH_MS = 5000;
const VIEWS = { overview, nodes, tenants, prefixes, events, explain };

const at = (id) => document.getElementById(id);
let shown = null; // the view
let turn = 0; // of refreshing: an answer to an earlier one is dropped
let paused = false;
let answered = null; // when the master answered last

function choose() {
  const wanted = location.hash.replace(/^#\/?/, "");
  if (wanted === "main") return; // the link to skip to the content
  const name = Object.hasOwn(VIEWS, wanted) ? wanted : "overview";
  for (const link of at("views").querySelectorAll("a")) {
    if (link.getAttribute("href") === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const first = shown === null;
  shown = VIEWS[name]();
  at("view").replaceChildren(shown.element);
  document.title = `${shown.element.querySelector("h1").textContent} · kvstore`;
  if (!first) at("main").focus();
  trouble("");
  refresh();
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

/** Whether somebody marks text, which a new table would take away. */
const isMarking = () => !getSelection().isCollapsed && at("view").contains(getSelection().anchorNode);

async function refresh() {
  const mine = ++turn;
  const view = shown;
  try {
    const [found, summary] = await Promise.all([view.load?.(), ask("overview")]);
    if (mine !== turn) return;
    answered = Date.now();
    state(summary);
    if (found !== undefined && !isMarking()) view.show(found);
    trouble("");
  } catch (error) {
    if (mine === turn) failed(error);
  }
  at("forget").hidden = !hasToken();
  at("updated").textContent = answered === null ? "" : clock(answered);
  document.body.dataset.turn = String(mine);
}

function failed(error) {
  if (error instanceof TokenWanted) {
    askForToken(hasToken() ? error.message : "");
  } else if (error instanceof Refused) {
    trouble(error.message);
  } else {
    at("state").className = "pill bad";
    at("state").textContent = "unreachable";
    trouble(`The master does not answer${answered === null ? "." : `; these values are ${duration(Date.now() - answered)} old.`}`);
  }
}

function state(found) {
  const { alive, draining, dead, joining, restarting } = found.nodes;
  const serving = alive + draining;
  const words = [`${serving} ${serving === 1 ? "node" : "nodes"}`];
  if (draining) words.push(`${draining} draining`);
  if (joining) words.push(`${joining} joining`);
  if (restarting) words.push(`${restarting} restarting`);
  if (dead) words.push(`${dead} dead`);
  if (found.rebuilding) words.push("rebuilding");
  at("state").className = `pill ${dead || !serving ? "bad" : found.rebuilding || draining || joining || restarting ? "warn" : "good"}`;
  at("state").textContent = words.join(", ");
  at("about").textContent = `Cluster ${found.cluster_id.slice(0, 8)} · version ${found.software_version} · master epoch ${found.master_epoch}, up ${duration(found.uptime_ms)}`;
}

function askForToken(refusal) {
  at("state").className = "pill warn";
  at("state").textContent = "token wanted";
  forgetToken();
  if (at("token") !== null) return;
  const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true, placeholder: "name:secret" });
  const submit = (event) => {
    event.preventDefault();
    keepToken(input.value.trim());
    choose();
  };
  at("view").replaceChildren(
    h("h1", {}, "Token"),
    h(
      "form",
      { class: "card form", onsubmit: submit },
      h("p", {}, "This cluster has a token file. Give the name and the secret of a line of it; an operator of every tenant sees everything."),
      refusal ? h("p", { class: "refusal", role: "alert" }, `Refused: ${refusal}`) : null,
      h("label", { class: "field", for: "token" }, "Token", input),
      h("button", { type: "submit", class: "main" }, "Show the cluster"),
      h("p", { class: "muted" }, "It is kept in this tab until you close it, and sent with each request: use it over a connection that you trust."),
    ),
  );
  input.focus();
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  at("pause").textContent = paused ? "Paused" : "Pause";
  if (!paused) refresh();
});
at("forget").addEventListener("click", () => {
  forgetToken();
  choose();
});
at("main").addEventListener("again", refresh);
at("main").addEventListener("failed", (event) => failed(event.detail));
addEventListener("hashchange", choose);
document.addEventListener("visibilitychange", () => !document.hidden && !paused && refresh());
setInterval(() => !document.hidden && !paused && at("token") === null && refresh(), REFRESH_MS);
choose();
