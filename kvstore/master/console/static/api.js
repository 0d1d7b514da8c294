// Asks the master. With a token file each request carries the token, which is kept in
// sessionStorage: it survives a reload, is this tab's alone, and goes with it. It is no cookie, so
// no other site can make this browser send it.

const KEPT = "kvstore-token";
const PATIENCE_MS = 10_000;

/** The master wants another token, or any. */
export class TokenWanted extends Error {}

/** The master answered with an error, in its own words. */
export class Refused extends Error {}

export const hasToken = () => sessionStorage.getItem(KEPT) !== null;
export const keepToken = (token) => sessionStorage.setItem(KEPT, token);
export const forgetToken = () => sessionStorage.removeItem(KEPT);

export async function ask(path, query = {}) {
  const token = sessionStorage.getItem(KEPT);
  const text = new URLSearchParams(query).toString();
  const reply = await fetch(`api/${path}${text ? `?${text}` : ""}`, {
    headers: token === null ? {} : { Authorization: `Bearer ${token}` },
    cache: "no-store",
    credentials: "omit",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const answer = await reply.json();
  if (reply.status === 401) throw new TokenWanted(answer.error);
  if (!reply.ok) throw new Refused(answer.error);
  return answer;
}
