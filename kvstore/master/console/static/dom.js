// Makes elements. Whatever comes from outside becomes text: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element; children are elements or text. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** A value with its exact form beside the readable one; `name` says which it is. */
export function value(name, exact, readable) {
  return h("data", { "data-name": name, value: exact ?? "" }, readable);
}

const shareOf = (part, whole) => (whole > 0 ? Math.min(1, part / whole) : 0);

function bar(share) {
  const element = h("span", { class: "bar" });
  element.style.width = `${(100 * share).toFixed(1)}%`;
  return element;
}

/** A share of something that is named beside it, for the eye alone. */
export const strip = (part, whole) => h("span", { class: "meter", "aria-hidden": "true" }, bar(shareOf(part, whole)));

/** How full something is, with its share in words. A full cache is as it should be: no alarm. */
export function meter(label, part, whole, words) {
  const share = shareOf(part, whole);
  return h(
    "span",
    {
      class: "meter",
      role: "meter",
      "aria-label": label,
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": (100 * share).toFixed(0),
      "aria-valuetext": words,
    },
    bar(share),
  );
}
