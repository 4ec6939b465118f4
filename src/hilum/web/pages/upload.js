// Upload by drag and drop or by choice: takes files and folders; stores each by a request of its own, a few at
// a time, so that what became of it is known by its name. The server makes one commit of those that wait.

import { counted } from "./dicom.js";
import { store } from "./dicomweb.js";

const AT_ONCE = 4;
const LINES_MAX = 500; // stored ones beyond that are only counted; failures are always listed

const byId = (id) => document.getElementById(id);

/** Take files from now on; onStored is called whenever some have been stored. */
export function watchUploads(onStored) {
  const upload = new Upload(onStored);
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", (event) => {
    upload.add([...event.target.files].map((file) => ({ file, path: file.name })));
    event.target.value = "";
  });
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  addEventListener("drop", async (event) => {
    document.body.classList.remove("dropping");
    if (!holdsFiles(event)) return;
    event.preventDefault();
    upload.add(await filesOf(event.dataTransfer));
  });
  byId("stop").addEventListener("click", () => upload.stop());
  byId("close").addEventListener("click", () => upload.close());
  addEventListener("beforeunload", (event) => {
    if (upload.isRunning) event.preventDefault();
  });
}

/** All files of a drop, those in folders too. The entries are taken at once: later they are gone. */
async function filesOf(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  for (const waiting = entries; waiting.length; ) {
    const entry = waiting.pop();
    if (entry.isDirectory) waiting.push(...(await entriesOf(entry)));
    else found.push({ file: await fileOf(entry), path: entry.fullPath.replace(/^\//, "") });
  }
  return found.filter(({ file }) => file).sort((a, b) => (a.path < b.path ? -1 : 1));
}

const fileOf = (entry) => new Promise((resolve) => entry.file(resolve, () => resolve(null)));

async function entriesOf(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return found; // it gives them a hundred at a time
    found.push(...some);
  }
}

class Upload {
  constructor(onStored) {
    this.onStored = onStored;
    this.clear();
  }

  clear() {
    this.waiting = [];
    this.running = new Map(); // item → bytes that were sent of it
    this.bytes = 0;
    this.done = { stored: 0, warned: 0, failed: 0, bytes: 0 };
    this.stopping = new AbortController();
    byId("outcomes").replaceChildren();
  }

  get isRunning() {
    return this.running.size + this.waiting.length > 0;
  }

  add(items) {
    if (!items.length) return;
    if (!this.isRunning) this.clear();
    for (const item of items) {
      this.waiting.push(item);
      this.bytes += item.file.size;
    }
    byId("upload").hidden = false;
    while (this.running.size < AT_ONCE && this.waiting.length) this.next();
    this.show();
  }

  next() {
    const item = this.waiting.shift();
    if (!item) return;
    this.running.set(item, 0);
    const onProgress = (bytes) => {
      if (this.running.has(item)) this.running.set(item, bytes);
      this.show();
    };
    store(item.file, onProgress, this.stopping.signal).then((outcome) => {
      this.running.delete(item);
      this.done[outcome.state] += 1;
      this.done.bytes += item.file.size;
      this.tell(item, outcome);
      this.next();
      this.show();
      if (!this.isRunning && this.done.stored + this.done.warned) this.onStored();
    });
  }

  stop() {
    for (const item of this.waiting.splice(0)) {
      this.done.failed += 1;
      this.done.bytes += item.file.size;
      this.tell(item, { state: "failed", words: "Stopped." });
    }
    this.stopping.abort();
    this.show();
  }

  close() {
    this.clear();
    byId("upload").hidden = true;
  }

  tell(item, { state, words }) {
    const lines = byId("outcomes");
    if (state === "stored" && lines.childElementCount >= LINES_MAX) return;
    const line = document.createElement("li");
    line.className = state;
    line.append(item.path);
    if (words) {
      const why = document.createElement("span");
      why.className = "sub";
      why.textContent = words;
      line.append(why);
    }
    if (state === "failed") lines.prepend(line);
    else lines.append(line);
  }

  show() {
    const { stored, warned, failed, bytes } = this.done;
    const sent = [...this.running.values()].reduce((sum, part) => sum + part, bytes);
    const ended = stored + warned + failed;
    const all = ended + this.running.size + this.waiting.length;
    byId("progress").value = this.bytes ? sent / this.bytes : Number(!this.isRunning);
    byId("stop").hidden = !this.isRunning;
    byId("close").hidden = this.isRunning;
    const kept = counted(stored + warned, "file");
    const words = failed ? `${kept} stored, ${failed.toLocaleString("en")} not` : `${kept} stored`;
    byId("upload-status").textContent = this.isRunning
      ? `Storing ${ended.toLocaleString("en")} of ${counted(all, "file")} …`
      : words;
  }
}
