// Markdown → nodes that are safe to show. What a model writes is nobody's HTML: tags stand there as text, images from
// elsewhere become links, and whatever is left goes through DOMPurify.

import { copyText, element, icon } from "./dom.js";
import { Marked } from "./vendor/marked.esm.js";
import purify from "./vendor/purify.es.mjs";

const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
  },
});

const RULES = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "input", "li", "ol", "p",
    "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["href", "title", "class", "start", "align", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.tagName === "INPUT" && node.getAttribute("type") !== "checkbox") node.remove();
});

/** A block of code with its language and a button that copies it. */
function codeBlock(pre) {
  const code = pre.querySelector("code");
  const language = /language-([\w+#.-]+)/.exec(code?.className ?? "")?.[1] ?? "text";
  const copy = element("button.quiet.labelled", { type: "button", "aria-label": `Copy the ${language} code` }, icon("copy"), "Copy");
  copy.addEventListener("click", async () => {
    copy.lastChild.data = (await copyText(pre.textContent.replace(/\n$/, ""))) ? "Copied" : "Not allowed";
    setTimeout(() => { copy.lastChild.data = "Copy"; }, 2000);
  });
  const frame = element("div.code", {}, element("div.code-head", {}, element("span", {}, language), copy));
  pre.replaceWith(frame);
  pre.tabIndex = 0; // it scrolls: the keyboard must get there
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", `${language} code`);
  frame.append(pre);
}

function nodesOf(html) {
  const fragment = purify.sanitize(html, RULES);
  for (const pre of fragment.querySelectorAll("pre")) codeBlock(pre);
  for (const table of fragment.querySelectorAll("table")) {
    const frame = element("div.table", { tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const box of fragment.querySelectorAll("input")) box.setAttribute("aria-label", "Task");
  return fragment;
}

/** Text that grows: only blocks that changed are drawn again, so that a selection above survives. */
export class MarkdownView {
  #drawn = [];

  /** @param {HTMLElement} root where it is shown */
  constructor(root) { this.root = root; }

  /** Show a text. @param {string} text */
  show(text) {
    const tokens = marked.lexer(text);
    // A definition of a link, wherever it stands, changes other blocks.
    const links = JSON.stringify(tokens.links ?? {});
    tokens.forEach((token, at) => {
      const mark = `${links}\n${token.raw}`;
      if (this.#drawn[at] === mark) return;
      this.#drawn[at] = mark;
      const block = element("div.block");
      block.append(nodesOf(marked.parser(Object.assign([token], { links: tokens.links }))));
      if (at < this.root.children.length) this.root.children[at].replaceWith(block);
      else this.root.append(block);
    });
    this.#drawn.length = tokens.length;
    while (this.root.children.length > tokens.length) this.root.lastChild.remove();
  }
}
