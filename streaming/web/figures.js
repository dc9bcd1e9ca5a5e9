// Figures of picture, sound and network path from a receiver's statistics (W3C webrtc-stats).

/** The current figures, from the current and the previous reports; null for figures that are not known (yet). */
export function figuresOf(reports, before) {
  const { video, audio, pair } = sorted(reports);
  const earlier = before ? sorted(before) : {};
  const seconds = (video?.timestamp - earlier.video?.timestamp) / 1000;
  const gained = (name, kind = "video", now = { video, audio }) => now[kind]?.[name] - earlier[kind]?.[name];
  return {
    fps: finite(gained("framesDecoded") / seconds),
    bitrateKbps: finite((8 * (gained("bytesReceived") + gained("bytesReceived", "audio"))) / seconds / 1000),
    skewMs: finite(video?.estimatedPlayoutTimestamp - audio?.estimatedPlayoutTimestamp), // picture ahead of sound
    roundTripMs: finite(pair?.currentRoundTripTime * 1000),
    packetsLost: finite(video?.packetsLost + audio?.packetsLost),
  };
}

const finite = (value) => (Number.isFinite(value) ? value : null);

function sorted(reports) {
  const found = {};
  for (const report of reports.values()) {
    if (report.type === "inbound-rtp") found[report.kind] = report;
    if (report.type === "candidate-pair" && report.nominated) found.pair = report;
  }
  return found;
}
