/** What the panel asks of the server; the host says how a request is sent. */

import { t } from "./language.js";

const PREFIX = "/dpdmd/v1";
const PATIENCE = 15000; // milliseconds

/** The server did not answer: it is starting anew, or gone. */
export class Away extends Error {}

/** The server refused; the message says what to do. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export class Client {
  /**
   * @param {(path: string, options: object) => Promise<Response>} send the host's own fetch
   * @param {(path: string) => string} address the address of a path, for images
   */
  constructor(send, address) {
    this.send = send;
    this.address = address;
  }

  state() {
    return this.ask("/state");
  }

  run(id) {
    return this.ask(`/runs/${encodeURIComponent(id)}`);
  }

  /** @param {string} action start, stop, resume, delete, duplicate, check, share, rename or move */
  act(id, action, body = {}) {
    return this.ask(`/runs/${encodeURIComponent(id)}/${action}`, body);
  }

  /** Takes a run back out of the trash, where it has this name. */
  restore(name) {
    return this.ask(`/trash/${encodeURIComponent(name)}/restore`, {});
  }

  /** The address of a run's report. */
  report(id) {
    return this.address(`${PREFIX}/runs/${encodeURIComponent(id)}/report`);
  }

  /** What a run of the node DP-DMD Distill with these values will take, in words. */
  async estimate(values) {
    return (await this.ask("/node-estimate", values)).text;
  }

  setUp() {
    return this.ask("/setup", {});
  }

  /** The address of a preview; `version` keeps a browser from showing an older file of that name. */
  image(id, name, version) {
    const path = `/runs/${encodeURIComponent(id)}/previews/${encodeURIComponent(name)}`;
    return this.address(`${PREFIX}${path}?v=${encodeURIComponent(version ?? "")}`);
  }

  async ask(path, body) {
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(), PATIENCE);
    const options = { signal: patience.signal, cache: "no-store" };
    if (body !== undefined) {
      options.method = "POST";
      options.headers = { "Content-Type": "application/json" };
      options.body = JSON.stringify(body);
    }
    try {
      return await this.read(await this.send(`${PREFIX}${path}`, options));
    } catch (error) {
      if (error instanceof Refused || error instanceof Away) throw error;
      throw new Away(String(error?.message ?? error));
    } finally {
      clearTimeout(timer);
    }
  }

  async read(response) {
    if ([502, 503, 504].includes(response.status)) throw new Away(`status ${response.status}`);
    const answer = await response.json().catch(() => null);
    if (response.ok && answer) return answer;
    const words = typeof answer?.error === "string" ? answer.error : "";
    throw new Refused(words || unexplained(response.status), response.status);
  }
}

function unexplained(status) {
  if (status === 404 || status === 405) {
    return t(
      "This server does not know the DP-DMD pages. Restart it; if that does not help, look for " +
        "DP-DMD in what it writes at its start.",
    );
  }
  return t("The server answered with status {status}. Its log says more.", { status });
}
