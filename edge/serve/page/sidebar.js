// The list of conversations: search, rename, export, delete. What is opened is the page's matter.

import { byId, chosen, element, iconButton, notice, saveFile } from "./dom.js";
import { closeSidebarWhereNarrow } from "./shell.js";
import { asJson, asMarkdown, fromJson, ImportError } from "./transfer.js";

const SNIPPET = 60;

/** Shows what the store holds. */
export class Sidebar {
  #draws = 0;

  /**
   * @param {import("./store.js").Store} store
   * @param {import("./answering.js").Answers} answers
   * @param {object} acts current() gives the id that is shown; deleted(id) and opened(id) are told
   */
  constructor(store, answers, acts) {
    Object.assign(this, { store, answers, acts });
    this.list = byId("chats");
    this.list.addEventListener("click", (event) => { if (event.target.closest("a")) closeSidebarWhereNarrow(); });
    byId("search").addEventListener("input", () => this.draw());
    byId("export-all").addEventListener("click", () => this.#exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
  }

  /** Draw the list anew; of several calls at once the last counts. */
  async draw() {
    const turn = ++this.#draws;
    const words = byId("search").value.trim().toLowerCase();
    const [chats, hits] = [await this.store.chats(), words ? await this.#hits(words) : null];
    if (turn !== this.#draws || this.list.querySelector("input")) return;
    const shown = chats.filter((chat) => !hits || hits.has(chat.id) || chat.name.toLowerCase().includes(words));
    this.list.replaceChildren(...shown.map((chat) => this.#row(chat, hits?.get(chat.id))));
    byId("no-chats").hidden = shown.length > 0;
    byId("no-chats").textContent = words ? "Nothing found." : "No conversations yet.";
  }

  /** Conversations that say the words: id → the words with what stands around them. */
  async #hits(words) {
    const found = new Map();
    for (const message of await this.store.allMessages()) {
      const at = message.content.toLowerCase().indexOf(words);
      if (at >= 0 && !found.has(message.chat)) {
        const from = Math.max(0, at - SNIPPET / 3);
        found.set(message.chat, `${from ? "…" : ""}${message.content.slice(from, from + SNIPPET)}…`);
      }
    }
    return found;
  }

  #row(chat, snippet) {
    const current = chat.id === this.acts.current();
    const link = element("a", { href: `#/chat/${chat.id}`, "aria-current": current ? "page" : null, title: chat.name },
      element("span.name", {}, chat.name), snippet ? element("span.snippet", {}, snippet) : null,
      this.answers.runsIn(chat.id) ? element("span.running", {}, element("span.offscreen", {}, "being answered")) : null);
    const row = element("li", {}, link);
    row.append(element("span.tools", {},
      iconButton("edit", `Rename ${chat.name}`, () => this.#rename(chat, row, link), { "data-act": "rename" }),
      iconButton("export", `Export ${chat.name}`, () => this.#export(chat), { "data-act": "export" }),
      iconButton("delete", `Delete ${chat.name}`, () => this.#delete(chat), { "data-act": "delete" })));
    return row;
  }

  #rename(chat, row, link) {
    const field = element("input", { type: "text", "aria-label": "Name of the conversation", maxlength: "200" });
    field.value = chat.name;
    let ended = false;
    const end = async (keep) => {
      if (ended) return; // taking the field away takes its focus, too
      ended = true;
      field.remove();
      const name = field.value.trim();
      if (keep && name && name !== chat.name) {
        await this.store.putChat({ ...(await this.store.chat(chat.id)), name });
        this.acts.renamed(chat.id, name);
      }
      await this.draw();
      this.list.querySelector(`a[href="#/chat/${chat.id}"]`)?.focus();
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") { event.stopPropagation(); end(false); }
    });
    link.replaceWith(field);
    row.querySelector(".tools").remove();
    field.focus();
    field.select();
  }

  async #delete(chat) {
    if (!(await chosen(`Delete “${chat.name}” and all its messages?`, { delete: "Delete" }))) return;
    this.answers.forget(chat.id);
    await this.store.deleteChat(chat.id);
    this.acts.deleted(chat.id);
    await this.draw();
  }

  async #export(chat) {
    const form = await chosen(`Export “${chat.name}”`, { md: "Markdown, to read", json: "JSON, to import again" });
    const messages = await this.store.messages(chat.id);
    if (form === "md") saveFile(`${fileName(chat.name)}.md`, asMarkdown(chat, messages), "text/markdown");
    if (form === "json") saveFile(`${fileName(chat.name)}.json`, asJson([{ chat, messages }]), "application/json");
  }

  async #exportAll() {
    const chats = await this.store.chats();
    const all = await Promise.all(chats.map(async (chat) => ({ chat, messages: await this.store.messages(chat.id) })));
    saveFile(`edgepack-chats-${new Date().toISOString().slice(0, 10)}.json`, asJson(all), "application/json");
  }

  async #import(input) {
    const files = [...input.files];
    input.value = "";
    for (const file of files) {
      try {
        const found = fromJson(await file.text());
        for (const { chat, messages } of found) await this.store.putWhole(chat, messages);
        notice(`${file.name}: ${found.length} conversation${found.length === 1 ? "" : "s"} imported.`);
        if (found.length === 1) this.acts.opened(found[0].chat.id);
      } catch (error) {
        if (!(error instanceof ImportError)) throw error;
        notice(`${file.name}: ${error.message}`);
      }
    }
    await this.draw();
  }
}

const fileName = (name) => name.replace(/[^\p{L}\p{N}._ -]+/gu, "_").slice(0, 60).trim() || "chat";
