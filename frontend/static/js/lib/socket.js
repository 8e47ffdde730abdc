// One WebSocket per page. Topics: snapshot, then deltas with sequence numbers; a gap or a reconnect asks for a new
// snapshot. A hidden tab holds no subscription. Reconnects wait with jitter, so that a restarted console is not stampeded.

const topics = new Map(); // topic -> { seq, data, listeners: Set }
const watchers = new Set();
let socket = null;
let attempt = 0;
let timer = 0;
let state = "closed";

function say(now) {
  state = now;
  for (const watcher of watchers) watcher(now);
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

// Points are [time, ...]: a delta brings new and late ones, which replace those of the same time.
function joinPoints(old, fresh, keep) {
  const byTime = new Map((old ?? []).map((point) => [point.at, point]));
  for (const point of fresh) byTime.set(point.at, point);
  const all = [...byTime.values()].sort((a, b) => a.at - b.at);
  return all.filter((point) => point.at > (all.at(-1)?.at ?? 0) - keep);
}

function receive(event) {
  const message = JSON.parse(event.data);
  const topic = topics.get(message.topic);
  if (!topic) return;
  if (message.type === "snapshot") {
    topic.data = message.data;
  } else if (message.type === "delta") {
    if (message.seq !== topic.seq + 1) { send({ type: "subscribe", topic: message.topic }); return; }
    const { points, ...facts } = message.data;
    Object.assign(topic.data, facts);
    if (points) topic.data.points = joinPoints(topic.data.points, points, topic.data.window_s ?? 300);
  } else {
    for (const listener of topic.listeners) listener(null, message);
    return;
  }
  topic.seq = message.seq;
  for (const listener of topic.listeners) listener(topic.data, null);
}

function open() {
  clearTimeout(timer);
  if (socket || document.hidden || !topics.size) return;
  say("connecting");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/console/`);
  socket.addEventListener("open", () => {
    attempt = 0;
    say("open");
    for (const topic of topics.keys()) send({ type: "subscribe", topic });
  });
  socket.addEventListener("message", receive);
  socket.addEventListener("close", (event) => {
    socket = null;
    say("closed");
    if (event.code === 4401) return; // the session has ended: asking again would not help
    const wait = Math.min(30_000, 500 * 2 ** attempt++) * (0.5 + Math.random());
    timer = setTimeout(open, wait);
  });
}

document.addEventListener("visibilitychange", () => {
  for (const topic of topics.keys()) send({ type: document.hidden ? "unsubscribe" : "subscribe", topic });
  if (!document.hidden) open();
});

export function subscribe(name, listener) {
  const topic = topics.get(name) ?? { seq: 0, data: null, listeners: new Set() };
  topic.listeners.add(listener);
  const fresh = !topics.has(name);
  topics.set(name, topic);
  if (fresh) send({ type: "subscribe", topic: name });
  else if (topic.data) listener(topic.data, null);
  open();
  return () => {
    topic.listeners.delete(listener);
    if (topic.listeners.size) return;
    topics.delete(name);
    send({ type: "unsubscribe", topic: name });
  };
}

export function watchConnection(watcher) {
  watchers.add(watcher);
  watcher(state);
  return () => watchers.delete(watcher);
}
