// Files that go with a question: text as it is, images made into what llama.cpp reads. Nothing is sent from here.

const MOST_TEXT = 2 << 20; // bytes
const MOST_IMAGE = 64 << 20;
const LONGEST_SIDE = 1568; // pixels; vision models scale larger ones down themselves

/** A file that cannot go with a question, and why. */
export class FileError extends Error {}

/**
 * A file as it is kept with a message.
 * @param {File} file
 * @param {boolean} vision whether the model sees images
 * @returns {Promise<{kind: "text", name: string, text: string}|{kind: "image", name: string, data: string}>}
 * @throws {FileError}
 */
export async function readFile(file, vision) {
  if (file.type.startsWith("image/") && file.type !== "image/svg+xml") {
    if (!vision) throw new FileError(`${file.name}: this model does not see images`);
    if (file.size > MOST_IMAGE) throw new FileError(`${file.name}: the image is larger than ${MOST_IMAGE >> 20} MiB`);
    return { kind: "image", name: file.name, data: await smallImage(file) };
  }
  if (file.size > MOST_TEXT) throw new FileError(`${file.name}: the file is larger than ${MOST_TEXT >> 20} MiB`);
  return { kind: "text", name: file.name, text: await textOf(file) };
}

async function textOf(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (text.includes("\0")) throw new TypeError("zero byte");
    return text;
  } catch {
    throw new FileError(`${file.name}: neither UTF-8 text nor an image`);
  }
}

/** JPEG (PNG where there is transparency to keep) of at most LONGEST_SIDE: llama.cpp reads neither WebP nor AVIF. */
async function smallImage(file) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new FileError(`${file.name}: the browser cannot read this image`);
  });
  const scale = Math.min(1, LONGEST_SIDE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return file.type === "image/png" ? canvas.toDataURL("image/png") : canvas.toDataURL("image/jpeg", 0.9);
}
