// What a server with calibrated confidence says of an answer (field `edgepack` of a choice, docs/confidence.md): how
// likely it is right, and whether to ask elsewhere. Checks it, as from files that anybody wrote, and puts it in words.

const isShare = (value) => Number.isFinite(value) && value >= 0 && value <= 1;

/**
 * A verdict as a message keeps it.
 * @param {unknown} told
 * @returns {{confidence: number, threshold: number, escalate: boolean, inRange: boolean}|undefined} undefined for none
 */
export function verdictOf(told) {
  if (!isShare(told?.confidence) || !isShare(told.threshold)) return undefined;
  const { confidence, threshold, in_range: inRange } = told;
  return { confidence, threshold, escalate: told.route === "escalate", inRange: inRange !== false };
}

/** The same of what an exported message kept. @param {unknown} kept */
export function keptVerdict(kept) {
  if (typeof kept !== "object" || kept === null) return undefined;
  return verdictOf({ ...kept, route: kept.escalate === true ? "escalate" : "answer", in_range: kept.inRange });
}

const percent = (share) => `${Math.round(100 * share)} %`;

/** In a few words. */
export const verdictText = (verdict) =>
  `${percent(verdict.confidence)} likely right${verdict.escalate ? " · better ask elsewhere" : ""}`;

/** What that rests on. */
export function verdictTitle({ confidence, threshold, inRange }) {
  const measured = `Calibrated: of answers like this one ${percent(confidence)} were right when the model was measured.`;
  if (!inRange) return `${measured} But none of those was of this length.`;
  return `${measured} From ${percent(threshold)} on answers are given, below that somebody else is better asked.`;
}
