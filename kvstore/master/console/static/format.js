// Numbers for reading. Sizes are binary, as everywhere in kvstore; rates are decimal.

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const DECIMAL = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];
const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** With at most so many digits behind the point, and none that are 0. */
const trimmed = (amount, digits) => String(Number(amount.toFixed(digits)));

function scaled(amount, base, units) {
  let at = 0;
  while (Math.abs(amount) >= base && at < units.length - 1) {
    amount /= base;
    at += 1;
  }
  const digits = Math.abs(amount) >= 100 ? 0 : Math.abs(amount) >= 10 ? 1 : 2;
  return `${trimmed(amount, at === 0 ? 0 : digits)} ${units[at]}`;
}

export const bytes = (amount) => scaled(amount, 1024, BINARY);
export const rate = (amount) => scaled(amount, 1000, DECIMAL);
export const whole = (count) => WHOLE.format(Math.round(count));

/** 1,234 or, from a hundred thousand on, 1.23M. */
export const count = (number) => (Math.abs(number) < 1e5 ? whole(number) : SHORT.format(number));

/** A number a second. */
export function perSecond(number) {
  if (number === 0) return "0/s";
  return number < 10 ? `${trimmed(number, 1)}/s` : `${count(number)}/s`;
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  return `${trimmed(100 * share, 1)} %`;
}

/** A duration in its two largest units. */
export function duration(ms) {
  const seconds = ms / 1000;
  if (seconds < 1) return `${Math.round(ms)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  const [name, size] = units[first];
  const next = units[first + 1];
  const more = Math.floor((seconds % size) / next[1]);
  return `${WHOLE.format(Math.floor(seconds / size))} ${name}${more ? ` ${more} ${next[0]}` : ""}`;
}

export const clock = (unixMs) =>
  new Date(unixMs).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const minute = (unixMs) =>
  new Date(unixMs).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });

export const moment = (unixMs) => new Date(unixMs).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
