// One message on the screen: what it says, what it thought, how it ended and what can be done with it.

import { copyText, element, icon, iconButton, notice } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { siblings, wasCut } from "./tree.js";
import { verdictText, verdictTitle } from "./verdict.js";

const ENDINGS = {
  stopped: "Stopped by you.",
  length: "Cut: the answer reached the length that the settings allow.",
  context: "Cut: the model's context is full.",
  lost: "Cut: the connection ended, or the page was closed.",
};

/** Drawn once and then kept up to date: an answer grows without losing focus, selection or an open fold. */
export class MessageView {
  /**
   * @param {object} message
   * @param {object} acts what the buttons do: regenerate, edit, branch, resume, retry, switchTo; each gets the message
   */
  constructor(message, acts) {
    this.acts = acts;
    this.message = message;
    const mine = message.role === "user";
    this.body = element(mine ? "div.said" : "div.said.markdown");
    this.markdown = mine ? null : new MarkdownView(this.body);
    if (mine) this.body.append(message.content, ...(message.files ?? []).map(fileView)); // a question never changes
    this.thought = element("pre", { tabindex: "0", role: "region", "aria-label": "Thinking" });
    this.thoughtHead = element("summary");
    this.fold = element("details.thinking", { hidden: true }, this.thoughtHead, this.thought);
    this.foot = element("div.foot");
    this.buttons = element("div.actions", { role: "group", "aria-label": mine ? "Your message" : "This answer" });
    this.root = element(
      `article.message.${message.role}`, { "data-id": message.id },
      element("h2.offscreen", {}, mine ? "You" : "Model"), mine ? null : this.fold, this.body, this.foot, this.buttons,
    );
  }

  /**
   * Show the message as it is now; what has not changed is not drawn again.
   * @param {object} message
   * @param {Map<string, object>} messages of the conversation, for the branches
   * @param {number} branches how many there are at this message
   * @param {boolean} busy whether the conversation has a running answer
   */
  show(message, messages, branches, busy) {
    this.message = message;
    this.root.dataset.state = message.state;
    this.root.setAttribute("aria-busy", String(message.state === "running"));
    if (this.shown !== message.content) this.markdown?.show(message.content);
    this.shown = message.content;
    this.#showThinking();
    const key = [message.state, message.error, message.speed?.tokens ?? 0, busy, branches].join();
    if (key === this.key && message.state !== "running") return;
    this.key = key;
    this.foot.replaceChildren(...this.#footer());
    if (message.state !== "running") this.buttons.replaceChildren(...this.#actions(messages, busy));
    else if (this.buttons.firstChild) this.buttons.replaceChildren();
  }

  #showThinking() {
    const { thinking, content, state } = this.message;
    this.fold.hidden = !thinking;
    if (!thinking || (thinking === this.shownThinking && state !== "running" && state === this.shownState)) return;
    Object.assign(this, { shownThinking: thinking, shownState: state });
    this.thought.textContent = thinking;
    this.thoughtHead.textContent = state === "running" && !content ? "Thinking …" : "Thought";
  }

  #footer() {
    const { state, content, thinking, error, speed, left, verdict } = this.message;
    if (this.message.role === "user") return [];
    if (state === "running") return content || thinking ? [] : [element("span.waiting", {}, readText(this.message.read))];
    const parts = [];
    if (state === "failed") parts.push(element("p.problem", { role: "alert" }, `This question failed: ${error ?? "no reason given"}`));
    if (ENDINGS[state]) parts.push(element("p.cut", {}, ENDINGS[state]));
    if (left) parts.push(element("p.cut", {}, `Answered without the ${left} oldest messages.`));
    if (state === "failed") parts.push(this.#button("retry", "Try again"));
    if (this.message.full) parts.push(this.#button("squeeze", "Ask without the oldest messages"));
    if (wasCut(this.message) && (content || thinking)) parts.push(this.#button("resume", "Continue"));
    if (verdict) {
      parts.push(element(`span.verdict${verdict.escalate ? ".unsure" : ""}`, { title: verdictTitle(verdict) }, verdictText(verdict)));
    }
    if (speed?.tokens) parts.push(element("span.speed", { title: `first token after ${speed.first.toFixed(1)} s` }, speedText(speed)));
    return parts;
  }

  #button(act, text) {
    return element("button.labelled", { type: "button", "data-act": act, onclick: () => this.acts[act](this.message) }, text);
  }

  #actions(messages, busy) {
    const { message, acts } = this;
    const copy = iconButton("copy", "Copy", async () => {
      notice((await copyText(message.content)) ? "Copied." : "The browser does not allow copying.");
    }, { "data-act": "copy" });
    const act = (name, drawing, label) => iconButton(drawing, label, () => acts[name](message), { "data-act": name, disabled: busy });
    const own = message.role === "user" ? [] : [act("regenerate", "again", "Answer again")];
    const edit = act("edit", "edit", message.role === "user" ? "Edit and ask again" : "Edit this answer");
    return [...this.#branches(messages), copy, ...own, edit, act("branch", "branch", "Branch into a new chat")];
  }

  #branches(messages) {
    const all = siblings(messages, this.message);
    if (all.length < 2) return [];
    const at = all.findIndex((one) => one.id === this.message.id);
    const go = (step, drawing, label) => iconButton(drawing, label, () => this.acts.switchTo(all[at + step]), {
      disabled: !all[at + step], "data-act": drawing,
    });
    return [go(-1, "left", "Branch before"), element("span.count", { "aria-label": `Branch ${at + 1} of ${all.length}` }, `${at + 1}/${all.length}`), go(1, "right", "Next branch")];
  }

  /**
   * Let the message be edited in its place.
   * @param {(text: string) => void} keep is called with the new text
   */
  edit(keep) {
    const field = element("textarea", { "aria-label": "Edit the message", rows: Math.min(this.message.content.split("\n").length + 1, 16) });
    field.value = this.message.content;
    const close = () => { form.replaceWith(this.body); this.root.classList.remove("editing"); };
    const form = element("form.edit", {}, field,
      element("div.row", {},
        element("button.primary", {}, this.message.role === "user" ? "Ask" : "Keep"),
        element("button", { type: "button", onclick: close }, "Cancel")));
    form.addEventListener("submit", (event) => { event.preventDefault(); close(); keep(field.value); });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    this.body.replaceWith(form);
    this.root.classList.add("editing");
    field.focus();
  }
}

const readText = (share) => (share > 0 && share < 1 ? `Reading: ${Math.round(100 * share)} %` : "Reading …");

const speedText = (speed) =>
  `${speed.tokens} token${speed.tokens === 1 ? "" : "s"}${speed.perSecond ? ` · ${speed.perSecond.toFixed(1)} tokens/s` : ""}`;

function fileView(file) {
  if (file.kind === "image") return element("img.attached", { src: file.data, alt: file.name });
  return element("details.attached", {}, element("summary", {}, icon("file"), file.name), element("pre", { tabindex: "0" }, file.text));
}
