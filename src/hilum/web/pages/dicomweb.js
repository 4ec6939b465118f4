// Asks our DICOMweb root; gives parsed answers. Knows no element of the page.

export const ROOT = "dicom-web";

/** A failure with the server's own words. */
export class Refused extends Error {}

async function get(path, accept, signal) {
  let answer;
  try {
    answer = await fetch(`${ROOT}/${path}`, { headers: { Accept: accept }, signal });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Refused("The server can't be reached.");
  }
  if (!answer.ok) throw new Refused(await words(answer));
  return answer;
}

async function words(answer) {
  const document = await answer.json().catch(() => ({}));
  return `The server answered ${answer.status}: ${document.error ?? answer.statusText}`;
}

/** Rows of a search, and what the server has to say of it. */
export async function search(path, query, signal) {
  const answer = await get(`${path}?${query}`, "application/dicom+json", signal);
  const warning = answer.headers.get("Warning") ?? "";
  return {
    rows: answer.status === 204 ? [] : await answer.json(),
    // "299 https://host/dicom-web: words"; that there are more pages is seen already.
    warning: /additional results/.test(warning) ? "" : warning.replace(/^299 \S+ /, ""),
  };
}

/** How many rows a search has in all. */
export async function count(path, query, signal) {
  const answer = await get(`${path}/count?${query}`, "application/json", signal);
  return (await answer.json()).count;
}

/** Path of a study or of a series in it. */
export function pathOf(study, series) {
  const path = `${ROOT}/studies/${encodeURIComponent(study)}`;
  return series === undefined ? path : `${path}/series/${encodeURIComponent(series)}`;
}

const REASON = "00081197";
const WARNING = "00081196";
const COMMENT = "00000902";

/**
 * Store one file: PS3.18 10.5, Store Transaction. The body is a Blob of Blobs, so the browser reads the file
 * while it sends it.
 *
 * Gives {state: "stored" | "warned" | "failed", words}; onProgress gets the bytes that are on their way.
 */
export function store(file, onProgress, signal) {
  return new Promise((resolve) => {
    const boundary = `hilum-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
    const head = `--${boundary}\r\nContent-Type: application/dicom\r\n\r\n`;
    const body = new Blob([head, file, `\r\n--${boundary}--\r\n`]);
    const request = new XMLHttpRequest(); // fetch tells nothing of what has been sent
    const failed = (why) => resolve({ state: "failed", words: why });
    request.open("POST", `${ROOT}/studies`);
    request.setRequestHeader("Content-Type", `multipart/related; type="application/dicom"; boundary=${boundary}`);
    request.setRequestHeader("Accept", "application/dicom+json");
    request.upload.addEventListener("progress", (event) => onProgress(Math.min(event.loaded, file.size)));
    request.addEventListener("error", () => failed("The connection was lost."));
    request.addEventListener("abort", () => failed("Stopped."));
    request.addEventListener("load", () => resolve(outcome(request)));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}

function outcome(request) {
  let document;
  try {
    document = JSON.parse(request.responseText);
  } catch {
    document = {};
  }
  // PS3.18 I.1, Response Message Body: Failed SOP Sequence, Other Failures Sequence, Referenced SOP Sequence.
  const items = (tag) => document[tag]?.Value ?? [];
  const [failure] = [...items("00081198"), ...items("0008119A")];
  const said = (item, code) => item[COMMENT]?.Value?.[0] ?? `reason ${hex(item[code]?.Value?.[0])}`;
  if (failure) return { state: "failed", words: said(failure, REASON) };
  const [stored] = items("00081199");
  if (!stored) return { state: "failed", words: document.error ?? `The server answered ${request.status}.` };
  return stored[WARNING] ? { state: "warned", words: said(stored, WARNING) } : { state: "stored", words: "" };
}

const hex = (code) => (code === undefined ? "not given" : code.toString(16).toUpperCase().padStart(4, "0"));
