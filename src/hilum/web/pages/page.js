// The list of studies: takes what the form asks, which stands in the address behind "#" and so is never sent
// as such; shows what a search finds, and of a study that is opened its series.

import { counted, date, name, text, time, values } from "./dicom.js";
import { Refused, count, pathOf, search } from "./dicomweb.js";
import { watchUploads } from "./upload.js";

const PAGE = 25;
const NEWEST = "-StudyDate,-StudyTime";
const KEYS = ["PatientName", "PatientID", "AccessionNumber", "ModalitiesInStudy"];
const INCLUDE = "StudyDescription,NumberOfStudyRelatedSeries,NumberOfStudyRelatedInstances";
const INCLUDE_SERIES = "SeriesDescription,BodyPartExamined,SeriesDate,NumberOfSeriesRelatedInstances";

const byId = (id) => document.getElementById(id);
const form = byId("search");
const list = byId("studies");
const status = byId("status");
const viewer = document.querySelector('meta[name="viewer"]');

/** An element with text and children. What comes from a data set goes in as text and no other way. */
function make(kind, properties = {}, ...children) {
  const found = document.createElement(kind);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") found.className = value;
    else if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
    else found[key] = value;
  }
  found.append(...children);
  return found;
}

// --- What is asked for --------------------------------------------------------

/** The form and the page as the address has them. */
function asked() {
  const found = new URLSearchParams(location.hash.slice(1));
  const offset = Number.parseInt(found.get("offset") ?? "0", 10);
  return { found, offset: Number.isSafeInteger(offset) && offset > 0 ? offset : 0 };
}

/** That as a query of QIDO-RS. Who gives no wildcard means a part of a name, or how an identifier begins. */
function queryOf(found) {
  const query = new URLSearchParams();
  for (const key of KEYS) {
    let value = (found.get(key) ?? "").trim();
    if (!value) continue;
    if (key === "ModalitiesInStudy") value = value.toUpperCase();
    else if (key === "PatientName") value = nameQuery(value);
    else if (!/[*?]/.test(value)) value = `${value}*`;
    query.set(key, value);
  }
  const [from, to] = ["from", "to"].map((key) => (found.get(key) ?? "").replaceAll("-", ""));
  if (from || to) query.set("StudyDate", from === to ? from : `${from}-${to}`);
  return query;
}

/** "smith, jo" is how names are shown: the family name and what is given begin with these. */
function nameQuery(text) {
  if (/[*?^]/.test(text)) return text;
  const parts = text.split(",").map((part) => part.trim());
  return parts.length > 1 ? parts.map((part) => `${part}*`).join("^") : `*${text}*`;
}

function go(changes) {
  const { found } = asked();
  for (const [key, value] of Object.entries(changes)) {
    if (value) found.set(key, value);
    else found.delete(key);
  }
  const hash = found.toString();
  if (hash === location.hash.slice(1)) show();
  else location.hash = hash;
}

// --- Studies ------------------------------------------------------------------

let running = new AbortController();

async function show() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const { found, offset } = asked();
  for (const field of form.elements) if (field.name) field.value = found.get(field.name) ?? "";
  const query = queryOf(found);
  const page = new URLSearchParams(query);
  page.set("limit", PAGE);
  page.set("offset", offset);
  page.set("order", found.get("order") || NEWEST);
  page.set("includefield", INCLUDE);
  list.setAttribute("aria-busy", "true");
  try {
    const [{ rows, warning }, total] = await Promise.all([
      search("studies", page, signal),
      count("studies", query, signal),
    ]);
    list.replaceChildren(...rows.map(study));
    if (!rows.length) list.append(make("li", { class: "empty" }, emptyWords(query, offset)));
    const range = rows.length ? `${(offset + 1).toLocaleString("en")}–${(offset + rows.length).toLocaleString("en")} of ` : "";
    status.textContent = `${range}${counted(total, "study", "studies")}`;
    byId("pager").hidden = total <= PAGE && !offset;
    byId("previous").disabled = !offset;
    byId("next").disabled = offset + rows.length >= total || !rows.length;
    complain(warning);
  } catch (failure) {
    if (failure.name === "AbortError") return;
    list.replaceChildren();
    status.textContent = "";
    byId("pager").hidden = true;
    complain(wordsOf(failure));
  }
  list.removeAttribute("aria-busy");
}

function emptyWords(query, offset) {
  if (offset) return "There are no more.";
  return query.size ? "No study matches." : "Nothing is stored yet. Drop files here, or press Upload.";
}

function wordsOf(failure) {
  if (failure instanceof Refused) return failure.message;
  console.error(failure);
  return "The answer of the server can't be understood.";
}

function complain(words) {
  byId("error").textContent = words;
  byId("error").hidden = !words;
}

function study(item) {
  const modalities = values(item, "00080061").map(String);
  const lines = (kind, missing, first, second) =>
    make(
      "div",
      { class: kind },
      make("div", { class: first ? "main" : "main none", title: first }, first || missing),
      make("div", { class: "sub", title: second }, second),
    );
  const chips = modalities.map((modality) => make("span", { class: "chip" }, modality));
  const series = counted(text(item, "00201206"), "series", "series");
  const images = counted(text(item, "00201208"), "instance");
  const accession = text(item, "00080050");
  const summary = make(
    "summary",
    {},
    lines("who", "no name", name(item, "00100010"), text(item, "00100020")),
    lines("when", "no date", date(item, "00080020"), time(item, "00080030")),
    lines("what", "no description", text(item, "00081030"), accession && `Accession ${accession}`),
    make(
      "div",
      { class: "count" },
      make("div", { class: "chips" }, ...chips),
      make("div", { class: "sub" }, `${series} · ${images}`),
    ),
  );
  const inside = make("div", { class: "study" });
  const details = make("details", {
    ontoggle: () => {
      if (details.open && !inside.hasChildNodes()) open(item, modalities, inside);
    },
  });
  details.append(summary, inside);
  return make("li", {}, details);
}

// --- A study ------------------------------------------------------------------

/** Where the viewer shows a study, maybe one series of it first; "" where there is no viewer. */
function viewerPath(study, modalities, series) {
  if (!viewer.content) return "";
  const query = new URLSearchParams({ StudyInstanceUIDs: study });
  if (series) query.set("initialSeriesInstanceUID", series);
  const mode = viewer.content !== "ohif/" ? "" : modalities.includes("SM") ? "microscopy" : "viewer";
  return `${viewer.content}${mode}?${query}`;
}

async function open(item, modalities, inside) {
  const uid = text(item, "0020000D");
  const path = pathOf(uid);
  const actions = make("div", { class: "actions" });
  const viewed = viewerPath(uid, modalities);
  if (viewed) actions.append(make("a", { class: "button primary", href: viewed }, `Open in ${viewer.dataset.label}`));
  actions.append(
    make("a", { class: "button", href: `${path}.zip`, download: "" }, "Download .zip"),
    make("a", { class: "button", href: `${path}/metadata?accept=application/dicom%2Bjson` }, "Metadata"),
  );
  const facts = make("dl", { class: "facts" });
  for (const [label, value] of [
    ["Birth date", date(item, "00100030")],
    ["Sex", text(item, "00100040")],
    ["Referring physician", name(item, "00080090")],
    ["Study ID", text(item, "00200010")],
    ["Study Instance UID", uid],
  ]) {
    if (value) facts.append(make("div", {}, make("dt", {}, label), make("dd", {}, value)));
  }
  const waiting = make("p", { class: "sub", role: "status" }, "Loading the series …");
  inside.replaceChildren(actions, facts, waiting);
  try {
    const query = new URLSearchParams({ includefield: INCLUDE_SERIES, order: "SeriesNumber" });
    const { rows } = await search(`studies/${encodeURIComponent(uid)}/series`, query);
    waiting.replaceWith(make("ul", { class: "series" }, ...rows.map((row) => seriesCard(uid, row))));
  } catch (failure) {
    waiting.replaceWith(make("p", { class: "notice" }, wordsOf(failure)));
  }
}

function seriesCard(study, item) {
  const uid = text(item, "0020000E");
  const modality = text(item, "00080060") || "?";
  const path = pathOf(study, uid);
  const number = text(item, "00200011");
  const title = text(item, "0008103E") || text(item, "00180015");
  const viewed = viewerPath(study, [modality], uid);
  const picture = make("img", {
    src: `${path}/thumbnail?viewport=336,336`,
    alt: "",
    loading: "lazy",
    onerror: () => picture.remove(), // no pixels: the modality stands there instead
  });
  const where = viewed ? `in ${viewer.dataset.label}` : "as a picture";
  return make(
    "li",
    {},
    make(
      "a",
      { class: "film", href: viewed || `${path}/rendered`, ariaLabel: `Show ${modality} ${number} ${title} ${where}` },
      modality,
      picture,
    ),
    make(
      "div",
      { class: "about" },
      make("div", { class: title ? "main" : "main none" }, title || "no description"),
      make("div", { class: "sub" }, [modality, number && `series ${number}`].filter(Boolean).join(" · ")),
      make(
        "div",
        { class: "foot" },
        make("span", { class: "sub" }, counted(text(item, "00201209"), "instance")),
        make("a", { href: `${path}.zip`, download: "", ariaLabel: `Download ${modality} ${number} ${title}` }, ".zip"),
      ),
    ),
  );
}

// --- Start --------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  go({ ...Object.fromEntries(new FormData(form)), offset: "" });
});
form.addEventListener("reset", () => {
  if (location.hash.length > 1) location.hash = "";
});
form.elements.order.addEventListener("change", () => form.requestSubmit());
for (const [id, step] of [["previous", -PAGE], ["next", PAGE]]) {
  byId(id).addEventListener("click", () => {
    go({ offset: Math.max(0, asked().offset + step) || "" });
    list.focus({ preventScroll: true });
    scrollTo({ top: 0 });
  });
}
addEventListener("hashchange", show);
if (viewer.content) {
  const link = byId("viewer");
  link.textContent = viewer.dataset.label;
  link.href = viewer.content;
  link.hidden = false;
}
watchUploads(show);
show();
