// A table that sorts by any column. On a narrow screen each row becomes a card (console.css).

import { h } from "./dom.js";

/**
 * Make a table.
 * `columns`: {label, of(row) → what it sorts by, cell(row) → element or text, number: right-aligned}.
 * `sorted`: index of the column to begin with; `descending`: from its largest value.
 */
export function table(caption, columns, { sorted = 0, descending = false, empty = "Nothing yet." } = {}) {
  let rows = [];
  const body = h("tbody", { role: "rowgroup" });
  const heads = columns.map((column, at) =>
    h(
      "th",
      { scope: "col", role: "columnheader", class: column.number ? "number" : null },
      h("button", { type: "button", onclick: () => sortBy(at) }, column.label),
    ),
  );
  const element = h(
    "table",
    { role: "table" },
    h("caption", {}, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)),
    body,
  );

  function sortBy(at) {
    descending = at === sorted ? !descending : Boolean(columns[at].number);
    sorted = at;
    draw();
  }

  function draw() {
    heads.forEach((head, at) => {
      const order = descending ? "descending" : "ascending";
      if (at === sorted) head.setAttribute("aria-sort", order);
      else head.removeAttribute("aria-sort");
    });
    const { of } = columns[sorted];
    const sign = descending ? -1 : 1;
    const ordered = [...rows].sort((a, b) => {
      const [one, other] = [of(a), of(b)];
      return sign * (typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other);
    });
    body.replaceChildren(
      ...ordered.map((row) =>
        h(
          "tr",
          { role: "row" },
          columns.map((column) =>
            h(
              "td",
              { role: "cell", class: column.number ? "number" : null, "data-label": column.label },
              column.cell(row),
            ),
          ),
        ),
      ),
    );
    if (!rows.length) {
      body.append(h("tr", { role: "row" }, h("td", { role: "cell", colspan: columns.length, class: "muted" }, empty)));
    }
  }

  return {
    element: h("div", { class: "table", role: "region", "aria-label": caption, tabindex: "0" }, element),
    show(more) {
      rows = more;
      draw();
    },
  };
}
