// Makes elements and speaks to screen readers. It knows nothing of chats.

/**
 * An element.
 * @param {string} tag its name, with classes behind dots: `button.quiet.small`
 * @param {object} [attributes] attributes; `on…` are listeners, `false` and `null` leave an attribute out
 * @param {...(Node|string|null)} children what is inside; text stays text
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * One of the drawings in index.html, hidden from screen readers.
 * @param {string} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * A button that shows a drawing; its label is told to screen readers and shown as a tooltip.
 * @param {string} drawing
 * @param {string} label
 * @param {() => void} act
 * @param {object} [attributes]
 * @returns {HTMLElement}
 */
export function iconButton(drawing, label, act, attributes = {}) {
  return element("button.quiet", { type: "button", "aria-label": label, title: label, onclick: act, ...attributes }, icon(drawing));
}

/** The element with an id. @param {string} id */
export const byId = (id) => document.getElementById(id);

/** Tell screen readers. @param {string} text */
export function announce(text) {
  const region = byId("announcement");
  region.textContent = "";
  setTimeout(() => { region.textContent = text; }, 50); // the same text twice is told twice
}

let noticeTimer = 0;

/** A line at the top of the page that goes away by itself. @param {string} text */
export function notice(text) {
  const line = byId("notice");
  line.textContent = text;
  line.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { line.hidden = true; }, 8000);
}

/**
 * Put text into the clipboard; works on addresses that browsers do not call secure, too.
 * @param {string} text
 * @returns {Promise<boolean>} whether it is there
 */
export async function copyText(text) {
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch { /* not allowed: the old way below */ }
  const field = element("textarea", { "aria-hidden": "true", class: "offscreen" });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

/**
 * Let the browser save a text as a file.
 * @param {string} name
 * @param {string} text
 * @param {string} type
 */
export function saveFile(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/**
 * Ask in a dialog; Escape chooses nothing.
 * @param {string} question
 * @param {Record<string, string>} answers value → what its button says; the last one is the main one
 * @returns {Promise<string>} the value that was chosen, or ""
 */
export function chosen(question, answers) {
  const dialog = byId("choice");
  byId("choice-question").textContent = question;
  const buttons = Object.entries(answers).map(([value, text]) => element("button", { value }, text));
  buttons.at(-1).className = "primary";
  byId("choice-answers").replaceChildren(element("button", { value: "" }, "Cancel"), ...buttons);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
