// Parts an answer into thinking and what is said, where a server leaves the marks in the text.

const OPEN = /^\s*<(think|thinking|reasoning|seed:think)>/i;

/**
 * Thinking and text of an answer that may still be growing.
 * @param {string} text as the model wrote it
 * @returns {{thinking: string, content: string}}
 */
export function parted(text) {
  const open = OPEN.exec(text);
  const close = open ? new RegExp(`</${open[1]}>`, "i").exec(text) : /<\/(think|thinking|reasoning|seed:think)>/i.exec(text);
  if (!open && !close) return { thinking: "", content: text };
  // Some templates write the opening mark into the prompt: then the answer begins inside the thinking.
  const begin = open ? open[0].length : 0;
  if (!close) return { thinking: text.slice(begin).trim(), content: "" };
  const after = text.slice(close.index + close[0].length);
  return { thinking: text.slice(begin, close.index).trim(), content: after.trimStart() };
}
