// Where a question is written: text, files beside it, Send or Stop. A draft outlives a reload.

import { byId, element, iconButton, notice } from "./dom.js";
import { FileError, readFile } from "./files.js";

const draftName = (chat) => `edgepack-draft-${chat ?? "new"}`;

/** The form under the conversation. */
export class Composer {
  #files = [];
  #chat = null;
  #busy = false;

  /** @param {object} acts send(text, files), stop(), editLast(), vision() */
  constructor(acts) {
    this.acts = acts;
    this.field = byId("question");
    this.button = byId("send");
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("paste", (event) => this.#take(event, event.clipboardData));
    byId("attach").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", (event) => { this.add([...event.target.files]); event.target.value = ""; });
    const main = document.querySelector("main");
    main.addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
    main.addEventListener("drop", (event) => this.#take(event, event.dataTransfer));
  }

  /** Write for another conversation: its draft comes back. @param {string|null} chat */
  open(chat) {
    this.#chat = chat;
    this.#files = [];
    this.field.value = sessionStorage.getItem(draftName(chat)) ?? "";
    this.#drawFiles();
    this.#resize();
  }

  /** Whether an answer is running: the button stops it then. @param {boolean} busy */
  set busy(busy) {
    this.#busy = busy;
    this.button.classList.toggle("stop", busy);
    this.button.setAttribute("aria-label", busy ? "Stop the answer" : "Send");
    this.button.title = busy ? "Stop the answer (Esc)" : "Send (Enter)";
    this.button.querySelector("use").setAttribute("href", busy ? "#icon-stop" : "#icon-send");
  }

  /** Put files beside the question. @param {File[]} files */
  async add(files) {
    for (const file of files) {
      try {
        this.#files.push(await readFile(file, this.acts.vision()));
      } catch (error) {
        if (!(error instanceof FileError)) throw error;
        notice(error.message);
      }
    }
    this.#drawFiles();
  }

  #take(event, transfer) {
    const files = [...(transfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.add(files);
  }

  #submit() {
    if (this.#busy) {
      this.acts.stop();
      return;
    }
    const text = this.field.value.trim();
    if (!text && !this.#files.length) return;
    const files = this.#files;
    sessionStorage.removeItem(draftName(this.#chat));
    this.field.value = "";
    this.#files = [];
    this.#drawFiles();
    this.#resize();
    this.acts.send(text, files);
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.#busy) this.#submit();
    } else if (event.key === "ArrowUp" && !this.field.value) {
      event.preventDefault();
      this.acts.editLast();
    }
  }

  #changed() {
    if (this.field.value) sessionStorage.setItem(draftName(this.#chat), this.field.value);
    else sessionStorage.removeItem(draftName(this.#chat));
    this.#resize();
  }

  #resize() {
    this.field.rows = 1;
    const line = parseFloat(getComputedStyle(this.field).lineHeight) || 24;
    this.field.rows = Math.min(Math.max(Math.round((this.field.scrollHeight - 16) / line), 1), 10);
  }

  #drawFiles() {
    byId("files").replaceChildren(...this.#files.map((file, at) => element("li", {},
      file.kind === "image" ? element("img", { src: file.data, alt: "" }) : null, element("span", {}, file.name),
      iconButton("close", `Remove ${file.name}`, () => { this.#files.splice(at, 1); this.#drawFiles(); this.field.focus(); }))));
  }
}
