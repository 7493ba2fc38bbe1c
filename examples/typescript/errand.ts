// The HTTP API of errand, with the types of its own description: `npm run types` makes them anew.

import { setTimeout as sleep } from "node:timers/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

export type Envelope = components["schemas"]["Envelope"];
export type Event = components["schemas"]["Event"];
export type Job = components["schemas"]["Job"];
type Answer<T> = { data?: T; error?: { detail: string }; response: Response };

/** An answer of the API that sending the request again does not change. */
export class Refused extends Error {}

export function told<T>({ data, error, response }: Answer<T>): T {
  if (!response.ok) throw new Refused(error?.detail ?? `the answer is ${response.status}`);
  return data as T;
}

const asksForPatience = (answer: Response) => answer.status === 429 || answer.status === 503;
const pause = (answer?: Response) => sleep(1000 * (Number(answer?.headers.get("Retry-After")) || 1));

/** While the API is away or asks for patience, the request is sent again for two minutes. */
async function patiently(request: Request): Promise<Response> {
  const until = performance.now() + 120_000;
  for (;;) {
    let answer: Response | undefined, cause: unknown;
    try {
      answer = await fetch(request.clone(), { signal: AbortSignal.timeout(60_000) });
      // It is read here, because the connection may be lost within it.
      const text = await answer.text();
      if (!asksForPatience(answer)) return new Response(text || null, answer);
    } catch (error) {
      cause = error;
    }
    if (performance.now() > until) throw new Error(`${request.url} was not answered for two minutes`, { cause });
    await pause(answer);
  }
}

/** Each request may be sent again: a job has an ID, and a batch a key. */
export class Errand {
  readonly api;
  private readonly headers: Record<string, string>;

  constructor(private readonly url: string, key?: string) {
    this.headers = key ? { Authorization: `Bearer ${key}` } : {};
    this.api = createClient<paths>({ baseUrl: url, headers: this.headers, fetch: patiently });
  }

  /** Enqueues a job and waits until it is final. Its `id` keeps a repeated request from being a second job. */
  async run(job: Envelope): Promise<Job> {
    const header = { Prefer: "wait=30" };
    let answer = (await this.api.POST("/v1/jobs", { params: { header }, body: job })) as Answer<Job>;
    while (told(answer).finished_at === null) {
      // While a job is held, it is told at once, whatever `Prefer` says.
      await pause(answer.response);
      const path = { id: told(answer).id };
      answer = await this.api.GET("/v1/jobs/{id}", { params: { header, path } });
    }
    return told(answer);
  }

  /** Enqueues jobs together. The same key is the same batch. */
  async batch(jobs: Envelope[], key: string): Promise<string> {
    const header = { "Idempotency-Key": key };
    return told(await this.api.POST("/v1/batches", { params: { header }, body: { items: jobs } })).id;
  }

  /** The events of a job or a batch until its end, through lost connections. Keep `cursor` to go on there. */
  async *events(of: { job: string } | { batch: string }, after?: string): AsyncGenerator<Event & { cursor: string }> {
    const url = `${this.url}/v1/events?${new URLSearchParams(of)}`;
    for (;;) {
      const headers = { ...this.headers, Accept: "text/event-stream", ...(after && { "Last-Event-ID": after }) };
      const silence = new AbortController();
      // A comment comes every 15 seconds at least.
      const timer = setTimeout(() => silence.abort(), 45_000);
      let answer: Response | undefined;
      try {
        answer = await fetch(url, { headers, signal: silence.signal });
        if (answer.status === 204) return;
        if (!answer.ok && !asksForPatience(answer)) throw new Refused((await answer.json()).detail);
        for await (const { id, data } of answer.ok ? blocks(answer.body!) : []) {
          timer.refresh();
          if (data) yield JSON.parse(data);
          after = id ?? after;
        }
      } catch (error) {
        // A `TypeError` is how `fetch` says that a connection is not to be had, or lost.
        if (!(error instanceof TypeError) && !silence.signal.aborted) throw error;
      } finally {
        clearTimeout(timer);
        silence.abort();
      }
      await pause(answer);
    }
  }
}

/** What is between empty lines: an event, or a comment, which has a cursor, too. Each field is a line. */
async function* blocks(stream: AsyncIterable<Uint8Array>): AsyncGenerator<{ id?: string; data?: string }> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const part of stream) {
    const whole = (rest + decoder.decode(part, { stream: true })).split("\n\n");
    rest = whole.pop()!;
    for (const block of whole)
      yield Object.fromEntries(block.split("\n").map((line) => [line.split(":")[0], line.slice(line.indexOf(":") + 2)]));
  }
}
