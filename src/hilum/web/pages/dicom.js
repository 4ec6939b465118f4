// Takes DICOM JSON (PS3.18 F, DICOM JSON Model); gives text for people. Text only: nobody may make markup of it.

/** The values of an attribute; [] where it is empty or not there. */
export const values = (item, tag) => item[tag]?.Value ?? [];

/** The first value as text. */
export function text(item, tag) {
  const [value] = values(item, tag);
  return value === undefined || value === null ? "" : String(value);
}

/** A person's name, the family name first; other ways of writing it behind. */
export function name(item, tag) {
  const [value] = values(item, tag);
  if (value === undefined || value === null) return "";
  if (typeof value !== "object") return String(value);
  const groups = [value.Alphabetic, value.Ideographic, value.Phonetic].filter(Boolean).map(group);
  return groups.length > 1 ? `${groups[0]} (${groups.slice(1).join(", ")})` : (groups[0] ?? "");
}

function group(components) {
  const [family, given, middle, prefix, suffix] = components.split("^").map((part) => part.trim());
  const rest = [prefix, given, middle, suffix].filter(Boolean).join(" ");
  return [family, rest].filter(Boolean).join(", ");
}

/** 19991231 as 1999-12-31; what is no date stays as it is. */
export function date(item, tag) {
  const found = text(item, tag);
  const match = /^(\d{4})\.?(\d\d)\.?(\d\d)$/.exec(found);
  return match ? match.slice(1).join("-") : found;
}

/** 101500.25 as 10:15. */
export function time(item, tag) {
  const match = /^(\d\d):?(\d\d)/.exec(text(item, tag));
  return match ? `${match[1]}:${match[2]}` : "";
}

/** "1 series", "2,000 images". */
export function counted(count, one, many = `${one}s`) {
  return `${Number(count).toLocaleString("en")} ${Number(count) === 1 ? one : many}`;
}
