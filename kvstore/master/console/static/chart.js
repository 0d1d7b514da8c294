// Lines over time. Pointer or arrow keys move a cursor, whose values stand above the chart.

import { h, s } from "./dom.js";
import { clock, minute } from "./format.js";

const HEIGHT = 150;
const LEFT = 66;
const BOTTOM = 20;
const TOP = 8;

/** The next number at or above that reads well, in units of `base`: 1, 2, 4, 10, 20, 40 … */
function round(number, base) {
  if (!(number > 0)) return 1;
  const unit = base ** Math.max(0, Math.floor(Math.log(number) / Math.log(base)));
  const power = unit * 10 ** Math.floor(Math.log10(number / unit));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= number * 0.999);
}

/**
 * Make a chart.
 * `lines`: {name, of(history) → values or nulls}; `format`: of a value; `top`: of the axis, if fixed;
 * `base`: of the unit, 1024 for bytes.
 */
export function chart(title, lines, { format, top, base = 1000 }) {
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const drawing = s("svg", { height: HEIGHT, role: "img", tabindex: "0", "aria-label": title });
  const legend = lines.length > 1
    ? h("ul", { class: "legend" }, lines.map((line, at) => h("li", { class: `line${at}` }, line.name)))
    : null;
  const element = h("section", { class: "card chart" }, h("h3", {}, title), legend, readout, drawing);
  let data = null;
  let cursor = null;

  function say(at) {
    const latest = at === null;
    const place = latest ? data.at.length - 1 : at;
    const words = lines.map((line, n) => {
      const found = data.values[n][place];
      return `${lines.length > 1 ? `${line.name} ` : ""}${found === null ? "–" : format(found)}`;
    });
    readout.textContent = `${words.join(", ")} ${latest ? "now" : `at ${clock(data.at[place])}`}`;
  }

  function draw() {
    const width = drawing.clientWidth || 320;
    drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const most = Math.max(0, ...data.values.flat().filter((one) => one !== null));
    const limit = top ?? round(most, base);
    const [from, to] = [data.at[0], data.end];
    const x = (at) => LEFT + ((at - from) / Math.max(1, to - from)) * (width - LEFT - 6);
    const y = (one) => TOP + (1 - one / limit) * (HEIGHT - TOP - BOTTOM);
    const parts = [0, 0.5, 1].map((share) =>
      s(
        "g",
        {},
        s("line", { class: "grid", x1: LEFT, x2: width - 6, y1: y(share * limit), y2: y(share * limit) }),
        s("text", { x: LEFT - 8, y: y(share * limit) + 4, "text-anchor": "end" }, format(share * limit)),
      ),
    );
    const label = to - from < 300_000 ? clock : minute;
    const marks = width > 420 && label === minute ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1];
    for (const share of marks) {
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      const at = from + share * (to - from);
      parts.push(s("text", { x: x(at), y: HEIGHT - 5, "text-anchor": anchor }, label(at)));
    }
    data.values.forEach((values, n) => parts.push(...path(values, n, x, y)));
    if (cursor !== null) {
      const at = x(data.at[cursor] + data.length[cursor] / 2);
      parts.push(s("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    drawing.replaceChildren(...parts);
    say(cursor);
  }

  /** A line, broken where nothing is known; a point that stands alone is a dot. */
  function path(values, n, x, y) {
    const runs = [[]];
    values.forEach((one, at) => {
      if (one === null) runs.push([]);
      else runs[runs.length - 1].push([x(data.at[at] + data.length[at] / 2), y(one)]);
    });
    return runs.filter((run) => run.length).map((run) =>
      run.length === 1
        ? s("circle", { class: `dot line${n}`, cx: run[0][0], cy: run[0][1], r: 2.5 })
        : s("path", { class: `line line${n}`, d: `M${run.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L")}` }),
    );
  }

  function move(to) {
    if (data === null) return;
    cursor = to === null ? null : Math.min(data.at.length - 1, Math.max(0, to));
    draw();
  }

  drawing.addEventListener("pointermove", (event) => {
    if (data === null) return;
    const box = drawing.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - 6);
    const at = data.at[0] + share * (data.end - data.at[0]);
    const place = data.at.findIndex((begin, n) => at < begin + data.length[n]);
    move(place < 0 ? data.at.length - 1 : place);
  });
  drawing.addEventListener("pointerleave", () => move(null));
  drawing.addEventListener("blur", () => move(null));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined || data === null) return;
    event.preventDefault();
    move((cursor ?? data.at.length - 1) + step);
  });
  new ResizeObserver(() => data !== null && draw()).observe(drawing);

  return {
    element,
    show(history) {
      const { at_unix_ms: at, length_ms: length } = history;
      const values = lines.map((line) => line.of(history));
      data = { at, length, values, end: at[at.length - 1] + length[length.length - 1] };
      if (cursor !== null && cursor >= at.length) cursor = null;
      draw();
    },
  };
}
